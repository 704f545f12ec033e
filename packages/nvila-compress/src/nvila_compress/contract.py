"""What every compressor promises, and the one error they share.

A compressor takes the tokens of a vision tower, one row of tokens for each tile or frame, and returns
fewer of them. Whoever assembles a model asks it three things before any compute: how the grid of tokens
will look (``out_grid``), how wide a token will be (``out_channels``), and how much is saved (``ratio``).
"""

from math import isqrt
from typing import Protocol, runtime_checkable

from torch import Tensor

REFERENCE_GRID = (32, 32)
"""Tokens of one 448 px tile with patches of 14 px: what a fixed token count is measured against."""


class GridError(ValueError):
    """The tokens at hand and the grid they are said to lie on do not agree."""


@runtime_checkable
class Compressor(Protocol):
    """Anything that turns the tokens of an image, tile or frame into fewer tokens.

    Shapes: tokens ``[b, h*w, c]`` -> ``[b, h'*w', out_channels(c)]`` with ``(h', w') = out_grid((h, w))``.
    ``TemporalAverage`` reads ``b`` as the frames of one video and returns ``out_frames(b)`` of them; all
    others keep ``b``.
    """

    @property
    def ratio(self) -> float:
        """Tokens that go in for each one that comes out."""
        ...

    def out_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns that come out of a grid of ``(rows, columns)`` tokens."""
        ...

    def out_channels(self, channels: int) -> int:
        """Width of a token that comes out, for tokens ``channels`` wide."""
        ...

    def __call__(self, tokens: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """Compress ``[b, h*w, c]``; ``grid`` is ``(h, w)``, a square if not given."""
        ...


def resolve_grid(count: int, grid: tuple[int, int] | None) -> tuple[int, int]:
    """The grid on which ``count`` tokens lie: the one given, once checked, else the square.

    Raises: GridError if the count is not that of the grid, or no square.
    """
    if grid is None:
        side = round(count**0.5)  # not math.isqrt: torch.compile cannot trace it when the count varies
        if side * side != count:
            raise GridError(f"{count} tokens do not lie on a square: pass grid=(rows, columns)")
        return side, side
    rows, columns = grid
    if rows < 1 or columns < 1 or rows * columns != count:
        raise GridError(
            f"{count} tokens do not lie on a grid of {rows} x {columns} = {rows * columns}: "
            "pass the grid that the vision tower made"
        )
    return rows, columns


def check_axes(tokens: Tensor) -> None:
    """Raises: GridError unless the tokens are ``[b, h*w, c]``."""
    if tokens.ndim != 3:
        raise GridError(
            f"tokens of shape {list(tokens.shape)} have {tokens.ndim} axes: pass [tiles or frames, tokens, channels]"
        )


def square_or_row(count: int) -> tuple[int, int]:
    """The grid of tokens that have no place in the image: a square if they make one, else one row."""
    side = isqrt(count)
    return (side, side) if side * side == count else (1, count)
