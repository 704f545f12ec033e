"""Published tensor names and ours.

Published names are those of upstream's modules with the part in front: ``llm.model.norm.weight``,
``vision_tower.vision_model.embeddings...``, ``mm_projector.layers.2.weight``. Ours differ in two ways: shorter
names in the vision tower, whose queries, keys and values are one layer, and a shorter path in the language model.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

VISION = "vision_tower.vision_model."
QKV = ("q_proj", "k_proj", "v_proj")
BLOCK = {
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "attn.proj": "self_attn.out_proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}
"""Of modules that have one published layer each; ``attn.qkv`` has three."""
STEM = {
    "position_embedding": "embeddings.position_embedding.weight",
    "patch_embedding.weight": "embeddings.patch_embedding.weight",
    "patch_embedding.bias": "embeddings.patch_embedding.bias",
}


def published_names(name: str) -> list[str]:
    """The published tensors that make up one of our parameters: one, or three for a fused ``qkv``.

    >>> published_names("vision.blocks.3.norm1.bias")
    ['vision_tower.vision_model.encoder.layers.3.layer_norm1.bias']
    """
    part, rest = name.split(".", 1)
    if part == "projector":
        return [f"mm_projector.{rest}"]
    if part == "llm":
        return [f"llm.{rest}" if rest.startswith("lm_head") else f"llm.model.{rest}"]
    if part != "vision":
        raise ValueError(f"parameter {name!r} has no published name: only SigLIP, the projector and Qwen2 have")
    if rest in STEM:
        return [VISION + STEM[rest]]
    found = re.fullmatch(r"blocks\.(\d+)\.(.+)\.(weight|bias)", rest)
    if not found or found[2] not in {"attn.qkv", *BLOCK}:
        raise ValueError(f"parameter {name!r} has no published name: it is not part of a SigLIP tower")
    layer, module, kind = found.groups()
    prefix = f"{VISION}encoder.layers.{layer}."
    if module == "attn.qkv":
        return [f"{prefix}self_attn.{which}.{kind}" for which in QKV]
    return [f"{prefix}{BLOCK[module]}.{kind}"]


def from_published(name: str, tensors: list[Tensor]) -> Tensor:
    """Published tensors to our parameter."""
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def to_published(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """Our parameter to published tensors; the inverse of ``from_published``."""
    names = published_names(name)
    return dict(zip(names, tensor.chunk(len(names)), strict=True))
