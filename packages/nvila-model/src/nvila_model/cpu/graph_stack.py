"""The blocks of a language model and the norm behind them in graphs of onnxruntime.

A token that is decoded meets some thirty small operations in a block besides its four products, and each costs about as
much to call as to compute. In a graph they cost next to nothing, attention included: it reads and writes the same cache
as the blocks in torch do. Coming back to Python is dear too, since the weights have pushed Python out of the
processor's cache by then.

Prompts make products of hundreds of rows, which other kernels may be far better at. Blocks in torch with those kernels
may stand beside the graphs and read prompts into the same cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast
from weakref import WeakKeyDictionary

import torch
from nvila_kernels.cpu.shape import DECODE_ROWS
from torch import Tensor, nn

from nvila_model.cpu.block_graph import PackedPiece, Piece
from nvila_model.cpu.decode_buffers import DecodeBuffers
from nvila_model.cpu.prompt_blocks import Angles, PromptBlocks
from nvila_model.cpu.stack import Stack, plain
from nvila_model.network.cache import Cache, KVCache
from nvila_model.network.qwen2 import RMSNorm, causal_mask


class GraphStack(Stack):
    """Blocks in graphs that write into a cache of float32.

    Args:
        graphs: of one or more blocks each, the last with the norm.
        norm: the same norm.
        kv_heads, head_dim: of keys and values.
        angles: of positions, as ``Qwen2`` makes them.
        prompts: the same blocks in torch, which read what has more rows than decoding; None if graphs do.

    Shapes: those of ``Qwen2``.
    """

    def __init__(
        self,
        graphs: Sequence[PackedPiece],
        norm: RMSNorm,
        *,
        kv_heads: int,
        head_dim: int,
        angles: Angles,
        prompts: PromptBlocks | None = None,
    ) -> None:
        super().__init__()
        self.graphs = nn.ModuleList(graphs)
        self.prompts = prompts
        self.norm = norm
        self.kv_heads, self.head_dim = kv_heads, head_dim
        self.angles = angles
        self.buffers_of: WeakKeyDictionary[KVCache, DecodeBuffers] = WeakKeyDictionary()

    @property
    def pieces(self) -> list[Piece]:
        return [cast(PackedPiece, graph).piece for graph in self.graphs]

    def forward(
        self,
        embeds: Tensor,
        *,
        positions: Tensor | None,
        mask: Tensor | None,
        cache: Cache | None,
        wanted: Tensor | None,
    ) -> Tensor:
        """Raises: ValueError for a mask by which a position looks ahead, or a cache that is full or has other rows."""
        batch, length, _ = embeds.shape
        stored = cast(KVCache | None, cache)
        if stored is not None:
            stored.take(batch)
        if self.prompts is not None and batch * length > DECODE_ROWS:
            return self.prompts(embeds, positions, mask, stored, wanted)
        if stored is not None and length == 1 and wanted is None and plain(embeds):
            return self.step(embeds, positions, mask, stored)
        if positions is None:
            start = 0 if stored is None else stored.length
            positions = torch.arange(start, start + length)[None]
        return self.run(embeds, positions, mask, stored, wanted)

    def step(self, embeds: Tensor, positions: Tensor | None, mask: Tensor | None, cache: KVCache) -> Tensor:
        """One new position a row."""
        buffers = self.buffers_of.get(cache)
        if buffers is None:
            buffers = self.buffers_of[cache] = DecodeBuffers(self.pieces, cache, embeds.shape[-1], self.angles)
        end = cache.end(1)
        return buffers.step(embeds, positions, None if mask is None else added(mask, 1, end), end)

    def run(
        self, embeds: Tensor, positions: Tensor, mask: Tensor | None, cache: KVCache | None, wanted: Tensor | None
    ) -> Tensor:
        """Any number of positions through the graphs."""
        batch, length, width = embeds.shape
        if cache is None:
            passing = self.layers_of_cache(1, batch, length)  # of one block after the other: nobody asks for them later
            layers = passing.layers * sum(piece.depth for piece in self.pieces)
            end = length
        else:
            layers, end = cache.layers, cache.end(length)
        given = (*self.turns(positions, batch, length, end), added(mask, length, end), *counts(batch, length, end))
        kept = torch.arange(batch * length) if wanted is None else wanted.flatten().nonzero().flatten()
        states = embeds.float().contiguous()
        for graph, piece in zip(self.graphs, self.pieces, strict=True):
            stored = [each for layer in layers[: piece.depth] for each in layer]
            sizes = (len(kept), width) if piece.last else states.shape
            states = cast(PackedPiece, graph).run((states, *given, *([kept] if piece.last else [])), sizes, stored)
            layers = layers[piece.depth :]
        states = states.to(embeds.dtype)
        return states.view(embeds.shape) if wanted is None else states

    def cache(self, batch: int, length: int) -> KVCache:
        return self.layers_of_cache(sum(piece.depth for piece in self.pieces), batch, length)

    def layers_of_cache(self, layers: int, batch: int, length: int) -> KVCache:
        return KVCache(
            layers=layers, batch=batch, heads=self.kv_heads, length=length, head_dim=self.head_dim,
            dtype=torch.float32, device=torch.device("cpu"),
        )  # fmt: skip

    def turns(self, positions: Tensor, batch: int, length: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
        """Cosines and sines, a row each, and which row belongs to which position.

        Shapes: ``[m, head_dim / 2]`` twice, the second half of an angle being the first again, and int64 ``[b, t]``.
        The runtime asks for at least as many rows as positions in the cache.
        """
        rows = batch * length
        tables: list[Tensor] = []
        for each in self.angles(positions):
            table = each.new_empty(max(rows, end), self.head_dim // 2)
            half = each[..., : self.head_dim // 2]
            table[:rows] = half.expand(batch, 1, length, -1).reshape(rows, -1)
            tables.append(table)
        return tables[0], tables[1], torch.arange(rows).view(batch, length)


def added(mask: Tensor | None, length: int, end: int) -> Tensor:
    """What is added to the scores: nothing, or the least there is where a position may not look.

    Shapes: bool ``[b, 1, t, end]`` or None -> float32 ``[b or 1, 1, t, end]``.
    Raises: ValueError for a mask by which a position looks ahead: the graph looks back only.
    """
    if mask is None:
        return torch.zeros(1, 1, length, end)
    if length > 1 and not torch.compiler.is_compiling():
        ahead = mask & ~causal_mask(length, end - length, device=mask.device)
        if bool(ahead.any()):
            row, _, query, key = (int(each) for each in ahead.nonzero()[0])
            raise ValueError(
                f"position {end - length + query} of row {row} may look at {key}, which lies ahead: blocks in graphs "
                "are causal, use the model before it was settled"
            )
    return torch.zeros(mask.shape).masked_fill_(~mask, torch.finfo(torch.float32).min)


def counts(batch: int, length: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
    """What the runtime asks for: the last filled position of every row, that of all, and the new ones of every row."""
    each = torch.full((2, batch), end - 1, dtype=torch.int32)
    each[1] = length
    return each[0], torch.tensor([end], dtype=torch.int32), each[1]
