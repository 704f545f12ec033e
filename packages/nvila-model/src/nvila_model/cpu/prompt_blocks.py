"""Blocks in torch that read prompts for a stack that decodes by other means."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from nvila_model.network.cache import KVCache
from nvila_model.network.qwen2 import Block, RMSNorm

Angles: TypeAlias = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Positions int64 ``[b, t]`` -> cosines and sines ``[b, 1, t, head_dim]``, of float32."""


class PromptBlocks(nn.Module):
    """All blocks and the norm behind them; keys and values go into the cache from which tokens are decoded.

    Args:
        blocks: of float32, their products on kernels for prompts.
        norm: behind the last one.
        angles: of positions, as ``Qwen2`` makes them.

    Shapes: those of ``Qwen2``.
    """

    def __init__(self, blocks: Sequence[Block], norm: RMSNorm, angles: Angles) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.norm = norm
        self.angles = angles

    def forward(
        self,
        embeds: Tensor,
        positions: Tensor | None,
        mask: Tensor | None,
        cache: KVCache | None,
        wanted: Tensor | None,
    ) -> Tensor:
        if positions is None:
            start = 0 if cache is None else cache.length
            positions = torch.arange(start, start + embeds.shape[1])[None]
        states, angles = embeds.float(), self.angles(positions)
        last = len(self.blocks) - 1
        for index, block in enumerate(self.blocks):
            states = block(states, angles, mask, cache, index, wanted if index == last else None)
        return self.norm(states).to(embeds.dtype)
