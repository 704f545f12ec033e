"""Layers that read the same input, as one product.

A token that is decoded meets 7 products a layer, and calling a kernel costs about as much as a small one takes. One
call for queries, keys and values and one for the two halves of the MLP leave 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from nvila_kernels import Int4Linear
from torch import Tensor, nn

from nvila_model.network.qwen2 import Attention, GatedMLP


class JoinedLinear(nn.Module):
    """Shapes: ``[..., k]`` -> one ``[..., n_i]`` for each layer that was joined."""

    def __init__(self, layers: Sequence[Int4Linear]) -> None:
        super().__init__()
        self.layer: nn.Module = joined(layers)
        self.sizes = [layer.out_features for layer in layers]

    def forward(self, x: Tensor) -> Sequence[Tensor]:
        return self.layer(x).split(self.sizes, dim=-1)


def joined(layers: Sequence[Int4Linear]) -> Int4Linear:
    """One layer with the outputs of several side by side."""
    first = layers[0]
    layer = Int4Linear(
        first.in_features, sum(each.out_features for each in layers), bias=False, group_size=first.group_size,
        scale_dtype=first.scale_dtype, device="meta",
    )  # fmt: skip
    layer.packed = torch.cat([each.packed for each in layers], dim=1)
    layer.scale_zero = torch.cat([each.scale_zero for each in layers], dim=1)
    if first.bias is not None:
        layer.bias = torch.cat([cast(Tensor, each.bias) for each in layers])
    return layer


def alike(layers: Sequence[nn.Module]) -> bool:
    """Whether layers can be joined: all of 4 bits, with the same groups, with or without bias."""
    kinds = {
        (layer.in_features, layer.group_size, layer.scale_dtype, layer.bias is None)
        for layer in layers
        if isinstance(layer, Int4Linear)
    }
    return len(kinds) == 1 and all(isinstance(layer, Int4Linear) for layer in layers)


def join_(blocks: nn.Module) -> None:
    """Join what can be joined in every block of Qwen2, in place. They only answer then: layers have other names."""
    for module in list(blocks.modules()):
        if isinstance(module, Attention) and module.qkv_proj is None:
            layers = [module.q_proj, module.k_proj, module.v_proj]
            if alike(layers):
                module.qkv_proj = JoinedLinear(cast("list[Int4Linear]", layers))
                del module.q_proj, module.k_proj, module.v_proj
        elif isinstance(module, GatedMLP) and module.gate_up_proj is None:
            layers = [module.gate_proj, module.up_proj]
            if alike(layers):
                module.gate_up_proj = JoinedLinear(cast("list[Int4Linear]", layers))
                del module.gate_proj, module.up_proj
