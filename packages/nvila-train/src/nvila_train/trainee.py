"""What is being trained: the model, and what helps to train it and is thrown away afterwards.

``patches`` are the linear heads of the vision tower's pretraining, ``written`` the embeddings of written-out scenes
of the language model's. All stages share one module, so that any of them can be resumed and any can follow any other.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import torch
from nvila_model.config import NVILAConfig
from nvila_model.inputs.processor import Processor
from nvila_model.inputs.tokenizer import Tokenizer
from nvila_model.network.qwen2 import Block
from nvila_model.network.vision import VisionTower
from nvila_model.nvila import NVILA
from nvila_tiling import DynamicS2
from torch import nn

from nvila_train.nano.patch_heads import PatchHeads
from nvila_train.nano.scene_text import WrittenScene
from nvila_train.tuning import learnable

PARTS: Final = ("vision", "projector", "llm", "patches", "written")
"""The parts that a stage may train, each at its own rate."""


class Trainee(nn.Module):
    """An NVILA with its scaffolding.

    Args:
        model: the NVILA; its tiler must be ``DynamicS2`` and its tower square, if it has scaffolding.
        scaffolding: False for a model that has learnt to see and to speak, and needs none.
    """

    patches: PatchHeads
    written: WrittenScene

    def __init__(self, model: NVILA, *, scaffolding: bool = True) -> None:
        super().__init__()
        self.model = model
        if not scaffolding:  # the parts are there, so that every stage finds them, and hold nothing
            for name in ("patches", "written"):
                self.add_module(name, nn.Identity())
            return
        side = self.tower.side
        across = model.compressor.out_grid((side, side))[0]
        self.patches = PatchHeads(self.tower.width)
        self.written = WrittenScene(model.llm.embed_tokens.embedding_dim, side=side, fold=side // across)

    @property
    def tower(self) -> VisionTower:
        """The vision tower."""
        tower = self.model.vision
        assert isinstance(tower, VisionTower)
        return tower

    @property
    def processor(self) -> Processor:
        return self.model.needed_processor()

    @property
    def tiler(self) -> DynamicS2:
        tiler = self.processor.tiler
        assert isinstance(tiler, DynamicS2)
        return tiler

    @property
    def patch(self) -> int:
        """Side of a patch in pixels."""
        return self.model.vision.patch_size

    @property
    def vision_blocks(self) -> tuple[nn.Module, ...]:
        """The vision tower's blocks; none where the tower is not our SigLIP."""
        tower = self.model.vision
        return tuple(tower.blocks) if isinstance(tower, VisionTower) else ()

    @property
    def tile_patches(self) -> int:
        """Patches of a tile."""
        return self.tower.side**2

    def part(self, name: str) -> nn.Module:
        """One of ``PARTS``."""
        return getattr(self if name in ("patches", "written") else self.model, name)


def new_trainee(config: NVILAConfig, tokenizer: Tokenizer, *, seed: int) -> Trainee:
    """Random weights.

    All matrices are drawn wider than the published 0.02, which is meant for widths above a thousand: at a width of 128
    it would leave the first blocks without effect. The last matrix of each branch is drawn narrower.
    """
    torch.manual_seed(seed)
    trainee = Trainee(NVILA.from_config(config, tokenizer))
    llm, vision = trainee.model.llm, trainee.tower
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


def param_groups(
    trainee: Trainee, rates: Mapping[str, float], muon: Mapping[str, float] | None = None
) -> Sequence[Mapping[str, Any]]:
    """Freeze every part that has no rate; a parameter group for each other. What ``tune`` froze stays frozen.

    Args:
        rates: peak rate of each part that is trained.
        muon: peak rate at which Muon trains the part's matrices, in a group of their own; AdamW trains the rest.

    Raises: ValueError for a part that does not exist, has nothing to learn, or has a Muon rate and no other.
    """
    muon = muon or {}
    unknown = sorted({*rates, *muon} - set(PARTS))
    if unknown:
        raise ValueError(f"no part {unknown[0]!r} to train: choose from {', '.join(PARTS)}")
    lone = sorted(set(muon) - set(rates))
    if lone:
        raise ValueError(f"part {lone[0]!r} has a Muon rate alone: give it one in rates too, for what is no matrix")
    groups: list[Mapping[str, Any]] = []
    able = {id(parameter) for parameter in learnable(trainee)}
    for name in PARTS:
        part = trainee.part(name)
        part.requires_grad_(False)
        learning = [parameter for parameter in part.parameters() if id(parameter) in able and name in rates]
        for parameter in learning:
            parameter.requires_grad_(True)
        if name not in rates:
            continue
        if not learning:
            raise ValueError(f"part {name!r} has a rate, but nothing in it learns: see [tune], or leave the rate out")
        matrices = [matrix for matrix in _matrices(part) if matrix.requires_grad] if name in muon else []
        known = {id(matrix) for matrix in matrices}
        rest = [parameter for parameter in learning if id(parameter) not in known]
        groups.append({"params": rest, "lr": rates[name], "name": name})
        if matrices:
            groups.append({"params": matrices, "lr": muon[name], "name": f"{name} matrices", "muon": True})
    return groups


def _matrices(part: nn.Module) -> list[nn.Parameter]:
    """Weights of linear layers, without any that is also an embedding."""
    tied = {id(module.weight) for module in part.modules() if isinstance(module, nn.Embedding)}
    linear = [module.weight for module in part.modules() if isinstance(module, nn.Linear)]
    return [weight for weight in linear if isinstance(weight, nn.Parameter) and id(weight) not in tied]
