"""Keys and values that a graph keeps, by number: an operator takes tensors only."""

from __future__ import annotations

from itertools import count
from typing import Self
from weakref import WeakValueDictionary

import torch
from nvila_kernels.cpu.openvino_graph import ReadyGraph, Request
from torch import Tensor

from nvila_model.cache import Cache

POSITIONS = 2
"""The axis of positions in keys and values, ``[batch, kv_heads, positions, head_dim]``."""
NOBODY = -1
"""The number of those who keep nothing."""

_numbers = count()
_known: WeakValueDictionary[int, States] = WeakValueDictionary()


class States:
    """What a graph keeps for one cache.

    What it reads of a new position a row stays where it is from token to token, as in ``DecodeBuffers``.

    Args:
        request: to the graph.
        cache: counts the positions.
        width: of the states of a position.
    """

    def __init__(self, request: Request, cache: Cache, width: int) -> None:
        self.request = request
        self.length = 0
        self.number = next(_numbers)
        with torch.inference_mode(False):  # they are written to in either mode
            self.x = torch.empty(cache.batch, 1, width)
            self.out = torch.empty(cache.batch, width)
            self.places = torch.empty(cache.batch, 1, dtype=torch.int64)
            self.added = torch.zeros(1, 1, 1, cache.capacity)
            self.rows = torch.arange(cache.batch, dtype=torch.int32)
            self.asked = torch.arange(cache.batch)
        _known[self.number] = self

    def step(self, embeds: Tensor, end: int) -> Tensor:
        """Normed states of one new position a row that looks at all others, ``[b, 1, width]`` -> the same."""
        self.x.copy_(embeds)
        self.places.fill_(end - 1)
        self.request([self.x, self.places, self.added[..., :end], self.rows, self.asked], self.out)
        self.length = end
        return self.out.view_as(embeds).to(embeds.dtype, copy=True)

    def back_to(self, length: int) -> None:
        """Forget what lies behind so many positions. Raises: ValueError if there are fewer."""
        if length > self.length:
            raise ValueError(
                f"the cache counts {length} positions, {self.length} were read: only the model can advance it"
            )
        if length < self.length:
            self.request.keep(length, POSITIONS)
            self.length = length

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self  # the cache that it belongs to is not copied either


def number_of(states: States | None) -> Tensor:
    """int64 ``[1]``."""
    return torch.tensor([NOBODY if states is None else states.number])


def request_of(number: Tensor, graph: ReadyGraph) -> Request:
    """What has this number, or a new request for ``NOBODY``."""
    found = int(number)
    return graph.request() if found == NOBODY else _known[found].request
