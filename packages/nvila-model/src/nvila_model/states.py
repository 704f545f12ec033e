"""Keys and values that a graph keeps, by number: an operator takes tensors only."""

from __future__ import annotations

from itertools import count
from typing import Self
from weakref import WeakValueDictionary

import torch
from nvila_kernels.cpu.openvino_graph import ReadyGraph, Request
from torch import Tensor

POSITIONS = 2
"""The axis of positions in keys and values, ``[batch, kv_heads, positions, head_dim]``."""
NOBODY = -1
"""The number of those who keep nothing."""

_numbers = count()
_known: WeakValueDictionary[int, States] = WeakValueDictionary()


class States:
    """What a graph keeps for one cache.

    Args:
        request: to the graph.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        self.length = 0
        self.number = next(_numbers)
        _known[self.number] = self

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
