"""The blocks of a language model as a compiled token reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from nvila_kernels.cpu.compiled.layout import OUTPUTS, Weight

from nvila_model.cpu.block_graph import Parts
from nvila_model.network.qwen2 import Qwen2, RMSNorm, rotary_frequencies


class TokenBlocks:
    """Packed weights, norms and biases, and what all blocks have in common.

    Args:
        llm: whose blocks they are.
        parts: of each block. Their weights are packed one block after the other, into ``weights``, in the order of
            ``Parts.layers``.
    """

    def __init__(self, llm: Qwen2, parts: Sequence[Parts]) -> None:
        self.weights: list[list[Weight]] = []
        self.heads = parts[0].block.self_attn.heads
        self.eps = llm.norm.eps
        self.frequencies = rotary_frequencies(head_dim=llm.head_dim, theta=llm.rope_theta, factor=llm.rope_factor)
        norms: list[RMSNorm] = [norm for part in parts for norm in (part.attention_norm, part.mlp_norm)]
        self.norms = torch.stack([norm.weight.detach().float() for norm in (*norms, llm.norm)])
        outputs = parts[0].qkv.out_features
        self.biases = torch.zeros(len(parts), -(-outputs // OUTPUTS) * OUTPUTS)
        for bias, part in zip(self.biases, parts, strict=True):
            if part.qkv.bias is not None:
                bias[:outputs] = part.qkv.bias

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self  # as for ``PackedWeight``: it never changes
