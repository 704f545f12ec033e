"""The blocks of a language model and the norm behind them in a graph of OpenVINO, which keeps keys and values.

Where a processor has an instruction for sums of 8-bit products, its product with 4-bit weights reads prompts a quarter
faster than onnxruntime's and decodes about as fast, with one packing. Keys and values are half as large as in float32.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from nvila_model.cache import Cache
from nvila_model.qwen2 import RMSNorm, causal_mask
from nvila_model.stack import Stack, plain
from nvila_model.stateful_graph import SettledBlocks
from nvila_model.states import States, number_of


class StatefulStack(Stack):
    """Blocks in a graph that keeps keys and values itself.

    Args:
        graph: the blocks, with the norm.
        norm: the same norm.

    Shapes: those of ``Qwen2``.
    """

    def __init__(self, graph: SettledBlocks, norm: RMSNorm) -> None:
        super().__init__()
        self.graph = graph
        self.norm = norm
        self.states_of: WeakKeyDictionary[Cache, States] = WeakKeyDictionary()

    def cache(self, batch: int, length: int) -> Cache:
        """It counts; keys and values are with the graph, for as long as it lives."""
        return Cache(batch=batch, capacity=length)

    def forward(
        self,
        embeds: Tensor,
        *,
        positions: Tensor | None,
        mask: Tensor | None,
        cache: Cache | None,
        wanted: Tensor | None,
    ) -> Tensor:
        """Raises: ValueError for a cache that is full or has other rows."""
        batch, length, width = embeds.shape
        states = None if cache is None else self.kept(cache, batch, width)
        end = length if cache is None else cache.end(length)
        if states and length == 1 and positions is None and mask is None and wanted is None and plain(embeds):
            return states.step(embeds, end)
        if positions is None:
            positions = torch.arange(end - length, end)[None]
        places = positions.expand(batch, -1).contiguous()
        asked = torch.arange(batch * length) if wanted is None else wanted.flatten().nonzero().flatten()
        rows = torch.arange(batch, dtype=torch.int32)
        given = (embeds.float().contiguous(), places, added(mask, length, end), rows, asked, number_of(states))
        out = self.graph.run(given, (len(asked), width)).to(embeds.dtype)
        if states is not None:
            states.length = end
        return out.view(embeds.shape) if wanted is None else out

    def kept(self, cache: Cache, rows: int, width: int) -> States:
        """What the graph keeps for a cache."""
        cache.take(rows)
        states = self.states_of.get(cache)
        if states is None:
            states = self.states_of[cache] = States(self.graph.blocks.ready.request(), cache, width)
        states.back_to(cache.length)
        return states


def added(mask: Tensor | None, length: int, end: int) -> Tensor:
    """What is added to the scores: nothing, or the least there is where a position may not look.

    Shapes: bool ``[b, 1, t, end]`` or None for plain causal -> float32 ``[b or 1, 1, t, end]``.
    """
    if mask is None and length == 1:
        return torch.zeros(1, 1, 1, end)
    if mask is None:
        mask = causal_mask(length, end - length, device=torch.device("cpu"))
    return torch.zeros(mask.shape).masked_fill_(~mask, torch.finfo(torch.float32).min)
