"""nano before it has learnt anything: random weights, and the scaffolding of its pretraining."""

from collections.abc import Mapping
from typing import cast

import torch
from nvila_model import NVILA, NVILAConfig
from nvila_model.inputs import Tokenizer
from nvila_model.network import Block, VisionTower
from torch import nn

from nvila_train.nano.patch_heads import PatchHeads
from nvila_train.nano.scene_text import WrittenScene
from nvila_train.trainee import Trainee


def scaffolding(model: NVILA) -> Mapping[str, nn.Module]:
    """What helps nano to learn and is thrown away: heads over patches, embeddings of written-out scenes.

    Args:
        model: its tower must be square.
    """
    tower = cast(VisionTower, model.vision)
    across = model.compressor.out_grid((tower.side, tower.side))[0]
    return {
        "patches": PatchHeads(tower.width),
        "written": WrittenScene(model.llm.embed_tokens.embedding_dim, side=tower.side, fold=tower.side // across),
    }


def new_trainee(config: NVILAConfig, tokenizer: Tokenizer, *, seed: int) -> Trainee:
    """Random weights.

    All matrices are drawn wider than the published 0.02, which is meant for widths above a thousand: at a width of 128
    it would leave the first blocks without effect. The last matrix of each branch is drawn narrower.
    """
    torch.manual_seed(seed)
    model = NVILA.from_config(config, tokenizer)
    trainee = Trainee(model, scaffolding(model))
    llm, vision = model.llm, trainee.tower
    for module in (*llm.modules(), *vision.modules()):
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.7 * module.in_features**-0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
    for layer in llm.layers:
        assert isinstance(layer, Block)
        for last in (layer.self_attn.o_proj, layer.mlp.down_proj):
            last.weight.data.mul_(0.3)
    for name, parameter in vision.blocks.named_parameters():
        if name.endswith(("attn.proj.weight", "mlp.fc2.weight")):
            parameter.data.mul_(0.5)
    return trainee
