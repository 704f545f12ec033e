"""What every compressor promises, and the two base classes that keep the promise.

A compressor takes the tokens of a vision tower, one row of tokens for each image, tile or frame, and returns fewer
of them. There are two kinds. One *folds*: every token goes into some token that comes out (``Fold``). The other
*chooses*: some tokens go on, as they are (``Choose``) or averaged with those that resemble them (``Merge``), each
with the position that it had.

Whoever assembles a model asks before any compute: how many tokens will come out (``out_count``), how they lie
(``out_grid``), how wide one is (``out_channels``), how much is saved (``ratio``), and what else must be passed
(``needs``). The base classes own what holds for all: the checks, the counts, reading order, that no image sees
another, dtype and gradients. A method only folds, scores or pairs.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from math import floor, isqrt, prod
from typing import Any, Protocol, runtime_checkable

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

REFERENCE_GRID = (32, 32)
"""Tokens of one 448 px tile with patches of 14 px: what a fixed token count is measured against."""

CONTEXT = {
    "attention": "[b, n], the attention that each token receives in the vision tower",
    "class_token": "[b, c], the tower's class token",
    "prompt": "[b, t, c], the prompt's embeddings, as wide as the tokens",
    "previous_frame": "nothing: the rows are the frames of one video, in order, and see each other",
}
"""What a compressor can need beside the tokens, by the keyword it is passed with."""


class GridError(ValueError):
    """The tokens at hand and the grid they are said to lie on do not agree."""


@runtime_checkable
class Compressor(Protocol):
    """Anything that turns the tokens of an image, tile or frame into fewer tokens.

    Shapes: tokens ``[b, h*w, c]`` -> ``[b, out_count((h, w)), out_channels(c)]``. A compressor in time
    (``"previous_frame" in needs``) reads ``b`` as the frames of one video and returns another number of rows, which
    hold ``out_count((h, w), b)`` tokens together.
    """

    @property
    def ratio(self) -> float:
        """Tokens that go in for each one that comes out."""
        ...

    @property
    def needs(self) -> frozenset[str]:
        """The context that a call must pass by keyword, from ``CONTEXT``; empty for most."""
        ...

    def out_count(self, grid: tuple[int, int], frames: int = 1) -> int:
        """Tokens that come out of ``frames`` grids of ``(rows, columns)`` tokens, all together."""
        ...

    def out_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns that come out of one grid; ``(1, count)`` where what comes out lies on no grid."""
        ...

    def out_channels(self, channels: int) -> int:
        """Width of a token that comes out, for tokens ``channels`` wide."""
        ...

    def __call__(self, tokens: Tensor, grid: tuple[int, int] | None = None, **context: Tensor) -> Tensor:
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


def grid_or_row(count: int, grid: tuple[int, int] | None) -> tuple[int, int]:
    """``resolve_grid`` for who can do without a grid: tokens that make no square then lie in one row."""
    if grid is None:
        side = round(count**0.5)
        return (side, side) if side * side == count else (1, count)
    return resolve_grid(count, grid)


def check_axes(tokens: Tensor) -> None:
    """Raises: GridError unless the tokens are ``[b, h*w, c]``."""
    if tokens.ndim != 3:
        raise GridError(
            f"tokens of shape {list(tokens.shape)} have {tokens.ndim} axes: pass [tiles or frames, tokens, channels]"
        )


def check_context(name: str, needs: frozenset[str], context: Mapping[str, Tensor], tokens: Tensor) -> None:
    """Raises: ValueError for context that is missing, not needed, or not one row for each row of tokens."""
    wanted = needs - {"previous_frame"}
    for key in sorted(wanted - context.keys()):
        raise ValueError(f"{name} needs {key}: pass {key}={CONTEXT.get(key, '...')}")
    for key, value in context.items():
        if key not in wanted:
            raise ValueError(f"{name} was given {key!r}, but needs {sorted(wanted) or 'nothing'} beside the tokens")
        if value.shape[0] != tokens.shape[0]:
            raise ValueError(
                f"{key} has {value.shape[0]} rows for {tokens.shape[0]} rows of tokens: pass one for each image"
            )


def square_or_row(count: int) -> tuple[int, int]:
    """The grid of tokens that have no place in the image: a square if they make one, else one row."""
    side = isqrt(count)
    return (side, side) if side * side == count else (1, count)


def check_keep(keep: object) -> int | float:
    """A budget of a chooser: a number of tokens, or a share of them.

    Raises: ValueError for a number below 1 or a share outside ``(0, 1]``.
    """
    if isinstance(keep, bool) or not isinstance(keep, (int, float)):
        raise ValueError(f"keep {keep!r} is no number: pass a count such as 64, or a share such as 0.25")
    if isinstance(keep, int) and keep < 1:
        raise ValueError(f"keep {keep} < 1: pass at least 1 token, or a share such as 0.25")
    if isinstance(keep, float) and not 0 < keep <= 1:
        raise ValueError(f"keep {keep} is not a share in (0, 1]: pass 0.25 for a quarter, or an int for a count")
    return keep


def budget(keep: int | float, count: int) -> int:
    """Tokens that ``keep`` leaves of ``count``: a number at most ``count``, a share rounded, at least 1."""
    if isinstance(keep, int):
        return min(keep, count)
    return max(1, floor(keep * count + 0.5))


class Fold(nn.Module, ABC):
    """Base of the compressors whose every token goes into some token that comes out.

    A subclass writes ``out_grid`` and ``fold``, and ``out_channels`` or ``out_frames`` where those change. Its
    constructor keeps each argument as an attribute of the same name, which is what ``describe`` writes down.

    Shapes: tokens ``[b, h*w, c]`` -> ``[out_frames(b), h'*w', out_channels(c)]`` with ``(h', w') = out_grid((h, w))``.
    Raises: GridError for other axes or tokens that do not lie on the grid; ValueError for missing or unknown context.
    """

    needs: frozenset[str] = frozenset()
    grid_free: bool = False
    """Whether tokens that make no square may come without a grid."""

    @abstractmethod
    def out_grid(self, grid: tuple[int, int]) -> tuple[int, int]: ...

    @abstractmethod
    def fold(self, tokens: Tensor, grid: tuple[int, int], **context: Tensor) -> Tensor:
        """``[b, h*w, c]``, checked and on ``grid`` -> ``[out_frames(b), h'*w', out_channels(c)]``."""
        ...

    def out_channels(self, channels: int) -> int:
        return channels

    def out_frames(self, frames: int) -> int:
        """Rows that come out of ``frames`` rows."""
        return frames

    def out_count(self, grid: tuple[int, int], frames: int = 1) -> int:
        return self.out_frames(frames) * prod(self.out_grid(grid))

    @property
    def ratio(self) -> float:
        """Against the 1024 tokens of a 448 px tile."""
        return prod(REFERENCE_GRID) / self.out_count(REFERENCE_GRID)

    def forward(self, tokens: Tensor, grid: tuple[int, int] | None = None, **context: Tensor) -> Tensor:
        check_axes(tokens)
        resolve = grid_or_row if self.grid_free else resolve_grid
        grid = resolve(tokens.shape[1], grid)
        check_context(type(self).__name__, self.needs, context, tokens)
        return self.fold(tokens, grid, **context)


class Choose(nn.Module, ABC):
    """Base of the compressors that keep some tokens, in reading order, with the positions they had.

    A subclass writes ``score`` (the highest go on), or ``pick`` where one choice depends on the last; both get
    float32 tokens and no gradient. What goes on is gathered from the tokens as they came, so that their gradient and
    dtype are untouched. With ``"previous_frame" in needs`` the rows are one video: the budget is that of all frames
    together and the tokens of a video come out as one row.

    Args:
        keep: how many tokens go on: a number (``int``) or a share (``float`` in ``(0, 1]``). It may be set again at
            any time; more than there are keeps all.

    Shapes: tokens ``[b, n, c]`` -> ``[b, out_count, c]``, or ``[1, out_count, c]`` of a video.
    Raises: GridError for other axes or tokens that do not lie on the grid; ValueError for a bad ``keep`` and for
        missing or unknown context; TypeError where the class is written, if it has none of the three ways to choose.
    """

    needs: frozenset[str] = frozenset()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if all(getattr(cls, way) is getattr(Choose, way) for way in ("score", "pick", "choose")):
            raise TypeError(f"{cls.__name__} cannot choose: write score, pick or choose")

    def __init__(self, keep: int | float = 0.25) -> None:
        super().__init__()
        self.keep = keep

    @property
    def keep(self) -> int | float:
        return self._keep

    @keep.setter
    def keep(self, keep: int | float) -> None:
        self._keep = check_keep(keep)

    @property
    def ratio(self) -> float:
        return 1 / self.keep if isinstance(self.keep, float) else prod(REFERENCE_GRID) / self.keep

    @property
    def in_time(self) -> bool:
        return "previous_frame" in self.needs

    def out_frames(self, frames: int) -> int:
        """Rows that come out of ``frames`` rows: one for a video, else as many."""
        return 1 if self.in_time else frames

    def out_count(self, grid: tuple[int, int], frames: int = 1) -> int:
        count = prod(grid)
        return budget(self.keep, frames * count) if self.in_time else frames * budget(self.keep, count)

    def out_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """One row: what is kept lies on no grid."""
        return 1, self.out_count(grid)

    def out_channels(self, channels: int) -> int:
        return channels

    def forward(self, tokens: Tensor, grid: tuple[int, int] | None = None, **context: Tensor) -> Tensor:
        return self.select(tokens, grid, **context)[0]

    def select(self, tokens: Tensor, grid: tuple[int, int] | None = None, **context: Tensor) -> tuple[Tensor, Tensor]:
        """The tokens that go on, ``[b, count, c]``, and their positions, ``[b, count]``, rising in each row.

        A position counts in reading order, ``row * columns + column``; in a video
        ``frame * rows * columns + row * columns + column``.
        """
        check_axes(tokens)
        grid = grid_or_row(tokens.shape[1], grid)
        check_context(type(self).__name__, self.needs, context, tokens)
        if self.in_time and tokens.shape[0] < 1:
            raise GridError("0 frames have no tokens to choose from: pass those of at least one frame")
        count = budget(self.keep, tokens.shape[0] * tokens.shape[1] if self.in_time else tokens.shape[1])
        return self.choose(tokens, count, grid, **context)

    def choose(self, tokens: Tensor, count: int, grid: tuple[int, int], **context: Tensor) -> tuple[Tensor, Tensor]:
        """``select`` once all is checked."""
        with torch.no_grad(), torch.autocast(tokens.device.type, enabled=False):
            picked = self.pick(in_float32(tokens), count, grid, **{key: in_float32(x) for key, x in context.items()})
            positions = picked.sort(dim=1).values
        rows = rearrange(tokens, "t n c -> 1 (t n) c") if self.in_time else tokens
        return gather(rows, positions), positions

    def pick(self, tokens: Tensor, count: int, grid: tuple[int, int], **context: Tensor) -> Tensor:
        """The positions of the ``count`` tokens that go on, in any order: ``[b, n, c]`` -> ``[b, count]``."""
        scores = self.score(tokens, grid, **context)
        return highest(scores.reshape(1, -1) if self.in_time else scores, count)

    def score(self, tokens: Tensor, grid: tuple[int, int], **context: Tensor) -> Tensor:
        """What each token is worth: ``[b, n, c]`` -> ``[b, n]``."""
        raise NotImplementedError(f"{type(self).__name__} picks without scores, or is the bare base: write score")

    def extra_repr(self) -> str:
        return f"keep={self.keep}"


def in_float32(x: Tensor) -> Tensor:
    """Half precision raised to float32, for choices that its rounding would change."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def highest(scores: Tensor, count: int) -> Tensor:
    """Positions of the ``count`` highest scores of each row; of equal ones the first: ``[b, n]`` -> ``[b, count]``."""
    return scores.argsort(dim=1, descending=True, stable=True)[:, :count]


def gather(tokens: Tensor, positions: Tensor) -> Tensor:
    """``[b, n, c]`` at ``[b, count]`` -> ``[b, count, c]``."""
    return tokens.gather(1, repeat(positions, "b k -> b k c", c=tokens.shape[2]))
