"""What a language model remembers of the positions that it has read."""

from __future__ import annotations

import torch
from torch import Tensor


class Cache:
    """How many positions are filled; keys and values may be with whatever attends to them.

    Args:
        batch: rows.
        capacity: most positions of a row.
    """

    def __init__(self, *, batch: int, capacity: int) -> None:
        self.batch, self.capacity = batch, capacity
        self.length = 0

    def end(self, count: int) -> int:
        """Positions that are filled with ``count`` more. Raises: ValueError if there are not so many."""
        end = self.length + count
        if end > self.capacity:
            raise ValueError(f"position {end} is beyond the cache of {self.capacity}: make a longer cache")
        return end

    def take(self, rows: int) -> None:
        """Raises: ValueError for another number of rows."""
        if rows != self.batch:
            raise ValueError(f"{rows} rows for a cache of {self.batch}: make one for as many rows")

    def advance(self, count: int) -> None:
        """Count ``count`` positions as filled, after every layer has written them."""
        self.length += count


class KVCache(Cache):
    """Keys and values of every layer, written in place: all memory is taken at once, so decoding never allocates.

    Shapes: two tensors ``[layers, batch, heads, length, head_dim]``, in ``layers`` those of each layer; ``update``
    returns the views ``[batch, heads, filled, head_dim]`` of one.
    """

    def __init__(
        self,
        *,
        layers: int,
        batch: int,
        heads: int,
        length: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__(batch=batch, capacity=length)
        shape = (layers, batch, heads, length, head_dim)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self.layers = list(zip(self.keys, self.values, strict=True))

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write new positions of one layer behind those that are filled; return all filled ones."""
        count = keys.shape[2]
        end = self.end(count)
        all_keys, all_values = self.layers[layer]
        all_keys.narrow(2, self.length, count).copy_(keys)
        all_values.narrow(2, self.length, count).copy_(values)
        return all_keys.narrow(2, 0, end), all_values.narrow(2, 0, end)
