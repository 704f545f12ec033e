"""What graphs read and write for one new position a row: tensors that stay where they are from token to token.

Between two graphs the weights have pushed torch, Python and the graphs' own small tensors out of the processor's cache,
and small operations take several times as long. So nothing is made anew for a token, and the graphs are told nothing
again: a few numbers are written, and they run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Self

import torch
from nvila_kernels.cpu.onnx_graph import Bound
from torch import Tensor

from nvila_model.cpu.block_graph import Piece
from nvila_model.network.cache import KVCache


class DecodeBuffers:
    """Buffers of one cache.

    Args:
        pieces: all blocks of a model, as graphs.
        cache: of float32.
        width: of the states.
        angles: positions int64 ``[b, t]`` -> cosines and sines ``[b, 1, t, head_dim]``, of float32.
    """

    def __init__(
        self, pieces: Sequence[Piece], cache: KVCache, width: int, angles: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> None:
        self.angles = angles
        batch = cache.batch
        with torch.inference_mode(False):  # they are written to in either mode
            self.x = torch.empty(batch, 1, width)
            self.out = torch.empty(batch, width)
            places, last, ends = torch.zeros(batch, 1, dtype=torch.int64), ones(batch), ones(1)
            self.given = {"x": self.x, "places": places, "last": last, "ends": ends, "new": ones(batch)}
            self.added = torch.zeros(batch, 1, 1, cache.capacity)
            self.given |= {"added": self.added, "kept": torch.arange(batch), **self.table(cache.capacity)}
        self.masked = False
        self.places, self.last, self.ends = places.numpy(), last.numpy(), ends.numpy()
        self.runs: list[Bound] = []
        layers = cache.layers
        for piece in pieces:
            stored = [each for layer in layers[: piece.depth] for each in layer]
            self.runs.append(piece.bound(self.given, stored, self.out if piece.last else self.x))
            layers = layers[piece.depth :]

    def table(self, positions: int) -> dict[str, Tensor]:
        """Cosines and sines of so many positions, ``[positions, head_dim / 2]``: the second half is the first again."""
        cos, sin = (each[0, 0] for each in self.angles(torch.arange(positions)[None]))
        half = cos.shape[1] // 2
        return {"cos": cos[:, :half].contiguous(), "sin": sin[:, :half].contiguous()}

    def turn_on(self, positions: int) -> None:
        """Angles of more positions than the cache has places."""
        with torch.inference_mode(False):
            table = self.table(positions)
        self.given |= table
        for run in self.runs:
            run.tell(table, {})

    def step(self, embeds: Tensor, positions: Tensor | None, added: Tensor | None, end: int) -> Tensor:
        """Normed states of one new position a row, ``[b, 1, width]`` -> the same.

        Args:
            positions: int64 ``[b or 1, 1]``; by default the place in the cache.
            added: to the scores of the places that are filled, ``[b or 1, 1, 1, end]``; by default nothing.
            end: places of the cache that are filled with it.
        """
        self.x.copy_(embeds)
        self.places[:] = end - 1 if positions is None else positions.numpy()
        self.last[:], self.ends[:] = end - 1, end
        if added is not None:
            self.added[..., :end] = added
        elif self.masked:
            self.added.zero_()
        self.masked = added is not None
        if self.places.max() >= len(self.given["cos"]):
            self.turn_on(2 * int(self.places.max()))
        for run in self.runs:
            run.run()
        return self.out.view_as(embeds).to(embeds.dtype, copy=True)

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self  # the cache that it belongs to is not copied either


def ones(rows: int) -> Tensor:
    """The runtime counts in int32."""
    return torch.ones(rows, dtype=torch.int32)
