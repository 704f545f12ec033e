"""Layers of a block that read the same input, as one product.

A token that is decoded meets 7 products a layer, and calling a kernel costs about as much as a small one takes. One
call for queries, keys and values and one for the two halves of the MLP leave 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from nvila_kernels import Int4Linear
from torch import Tensor, nn
from torch.nn import functional as F

from nvila_model.network.qwen2 import Attention, Block, GatedMLP


class JoinedAttention(Attention):
    """``Attention`` whose queries, keys and values are one product.

    Args:
        attention: whose layers these are.
        qkv_proj: the three projections as one.
        sizes: outputs of each of them.
    """

    def __init__(self, attention: Attention, qkv_proj: nn.Module, sizes: Sequence[int]) -> None:
        nn.Module.__init__(self)
        self.heads, self.kv_heads = attention.heads, attention.kv_heads
        self.sizes = list(sizes)
        self.qkv_proj = qkv_proj
        self.o_proj = attention.o_proj

    def project(self, x: Tensor) -> Sequence[Tensor]:
        return self.qkv_proj(x).split(self.sizes, dim=-1)


class JoinedMLP(nn.Module):
    """``GatedMLP`` whose first two layers are one product.

    Args:
        gate_up_proj: both as one.
        down_proj: the third.
    """

    def __init__(self, gate_up_proj: nn.Module, down_proj: nn.Module) -> None:
        super().__init__()
        self.gate_up_proj = gate_up_proj
        self.down_proj = down_proj

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


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


def joinable(layers: Sequence[nn.Module]) -> bool:
    """Whether layers can be joined: all of 4 bits, with the same groups, with or without bias."""
    kinds = {
        (layer.in_features, layer.group_size, layer.scale_dtype, layer.bias is None)
        for layer in layers
        if isinstance(layer, Int4Linear)
    }
    return len(kinds) == 1 and all(isinstance(layer, Int4Linear) for layer in layers)


def join_(block: Block) -> None:
    """Join what can be joined in a block of Qwen2, in place. It only answers then: layers have other names."""
    attention, mlp = cast(nn.Module, block.self_attn), cast(nn.Module, block.mlp)
    if type(attention) is Attention:
        layers: list[nn.Module] = [attention.q_proj, attention.k_proj, attention.v_proj]
        if joinable(layers):
            parts = cast("list[Int4Linear]", layers)
            block.self_attn = JoinedAttention(attention, joined(parts), [each.out_features for each in parts])
    if type(mlp) is GatedMLP:
        layers = [mlp.gate_proj, mlp.up_proj]
        if joinable(layers):
            made = JoinedMLP(joined(cast("list[Int4Linear]", layers)), mlp.down_proj)
            block.mlp = cast(GatedMLP, made)
