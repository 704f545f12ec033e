"""A SigLIP tower of open-clip as plain data: sizes, and tensors under our names.

open-clip builds its SigLIPs on timm's ``VisionTransformer``, which has the same parameters in other places, and which
computes the exact GELU where the published weights were trained with its tanh form; the form is carried over, so that
the features are open-clip's own. Both libraries are imported here alone, when a tower is asked for: together they take
longer to import than torch.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

STEM = {
    "pos_embed": "position_embedding",
    "patch_embed.proj.weight": "patch_embedding.weight",
    "patch_embed.proj.bias": "patch_embedding.bias",
}
BLOCK = re.compile(r"blocks\.\d+\.(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias)")
AFTER_BLOCKS = ("norm.", "fc_norm.", "attn_pool.", "head.")
"""What NVILA never reads."""


def siglip_tower(name: str, *, pretrained: str | None) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The arguments of ``VisionTower.siglip`` for a model of open-clip, and its tensors by our names.

    Raises: ValueError if open-clip has no such model, or its tower is no SigLIP.
    """
    import open_clip

    known = open_clip.list_models()
    if name not in known and ":" not in name:  # "hf-hub:owner/name" and "local-dir:path" are open-clip's own to find
        raise ValueError(f"open-clip has no model {name!r}: choose one of {', '.join(filter(is_siglip, known))}")
    visual = open_clip.create_model(name, pretrained=pretrained).visual
    trunk = getattr(visual, "trunk", None)
    tensors = {} if trunk is None else our_tensors(trunk)
    if not tensors:
        raise ValueError(f"the vision tower of open-clip's {name!r} is no SigLIP: give one such as ViT-B-16-SigLIP")
    return sizes(trunk), tensors


def is_siglip(name: str) -> bool:
    return "SigLIP" in name


def our_tensors(trunk: Any) -> dict[str, Tensor]:
    """The tensors up to the last block by our names; none if the trunk has parts that a SigLIP has not."""
    found: dict[str, Tensor] = {}
    for name, tensor in trunk.state_dict().items():
        if name.startswith(AFTER_BLOCKS):
            continue
        if name not in STEM and not BLOCK.fullmatch(name):
            return {}
        found[STEM.get(name, name)] = tensor[0] if name == "pos_embed" else tensor
    first = trunk.blocks[0]
    plain = (type(trunk).__name__, type(first).__name__) == ("VisionTransformer", "Block")
    plain = plain and gelu_form(first.mlp.act) is not None
    whole = set(STEM.values()) <= set(found) and len(found) == len(STEM) + 12 * len(trunk.blocks)
    return found if plain and whole else {}


def gelu_form(activation: nn.Module) -> str | None:
    """What torch calls it, from torch's module or timm's two; None for another function."""
    known = {"GELU": "none", "GELUTanh": "tanh"}
    return getattr(activation, "approximate", known.get(type(activation).__name__))


def sizes(trunk: Any) -> dict[str, Any]:
    block = trunk.blocks[0]
    return {
        "image_size": trunk.patch_embed.img_size[0],
        "patch_size": trunk.patch_embed.patch_size[0],
        "width": trunk.embed_dim,
        "layers": len(trunk.blocks),
        "heads": block.attn.num_heads,
        "mlp_width": block.mlp.fc1.out_features,
        "eps": block.norm1.eps,
        "gelu": gelu_form(block.mlp.act),
    }
