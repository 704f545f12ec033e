"""The prompt through the language model, a piece at a time.

A processor gains nothing from more rows than a piece has, and pays for them: what a block makes of a prompt of
thousands of positions takes more memory than the weights of a small model. A GPU reads it at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nvila_model.network.cache import Cache
from nvila_model.network.qwen2 import Qwen2

PIECE = 128
"""Positions that a processor reads at a time."""


def prefill(
    llm: Qwen2, embeds: Tensor, *, cache: Cache, positions: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Fill an empty cache with a prompt.

    Args:
        embeds: ``[b, t, width]``.
        cache: for at least ``t`` positions.
        positions: ``[b, t]`` int64; by default those from 0 on.
        mask: bool ``[b, 1, t, t]``, True where a position may look; None means plain causal.

    Returns: the hidden state of the last position, ``[b, width]``.
    """
    batch, length, _ = embeds.shape
    piece = PIECE if embeds.device.type == "cpu" else length
    hidden = embeds
    for start in range(0, length, piece):
        part = slice(start, min(start + piece, length))
        last = torch.arange(start + 1, part.stop + 1, device=embeds.device) == part.stop
        hidden = llm(
            embeds[:, part],
            positions=None if positions is None else positions[:, part],
            mask=None if mask is None else mask[:, :, part, : part.stop],
            cache=cache,
            wanted=last.expand(batch, -1),
        )
    return hidden
