"""The tokens of an image as a host lays them out, and how many are left of them.

A host writes an image as one or more blocks: a square tile; a map of many tiles with a newline token after each
row; the frames of a video with one newline at the end; each perhaps with a class token in front. The same blocks
say how many placeholders the processor must write and how the model's tokens are cut, so that both agree.
"""

from dataclasses import dataclass
from math import isqrt, prod
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from nvila_compress.contract import Choose, Compressor, GridError


@dataclass(frozen=True, kw_only=True)
class Block:
    """A stretch of tokens: ``lead`` class tokens, ``frames`` grids, ``tail`` newlines.

    Args:
        grid: rows and columns of one frame.
        frames: how many frames follow each other.
        video: whether the frames are those of one video, which a compressor in time may mix.
        newline: a newline token follows each row.
        lead: tokens in front of the grid that pass as they are.
        tail: tokens after it that pass as they are.
    """

    grid: tuple[int, int]
    frames: int = 1
    video: bool = False
    newline: bool = False
    lead: int = 0
    tail: int = 0

    @property
    def length(self) -> int:
        """Tokens before compression."""
        rows, columns = self.grid
        return self.lead + self.frames * rows * (columns + self.newline) + self.tail


def in_time(compressor: Compressor) -> bool:
    """Whether a compressor reads its rows as the frames of one video."""
    return "previous_frame" in compressor.needs


def applies(compressor: Compressor, block: Block) -> bool:
    """A compressor in time leaves pictures alone."""
    return block.video or not in_time(compressor)


def out_length(compressor: Compressor, block: Block) -> int:
    """Tokens after compression. What a chooser keeps of a map makes one row, with one newline."""
    if not applies(compressor, block):
        return block.length
    newlines = compressor.out_grid(block.grid)[0] if block.newline else 0
    return block.lead + compressor.out_count(block.grid, block.frames) + newlines + block.tail


def square(count: int, what: str) -> tuple[int, int]:
    """The square grid of ``count`` tokens. Raises: GridError if there is none."""
    side = isqrt(count)
    if side < 1 or side * side != count:
        raise GridError(f"{count} tokens of {what} make no square: the host's settings do not fit its vision tower")
    return side, side


def as_rows(tokens: Tensor, grid: tuple[int, int] | None) -> tuple[Tensor, int, tuple[int, int]]:
    """Tokens as they come out of a projector, one tile a row: ``[b, lead + h*w, c]``, ``lead``, ``(h, w)``."""
    if tokens.ndim == 4:
        tokens = tokens.flatten(1, 2)
    if tokens.ndim == 2:
        if grid is None or tokens.shape[0] % prod(grid):
            raise GridError(f"{tokens.shape[0]} flat tokens are no whole tiles of {grid}: pass grid=(rows, columns)")
        tokens = cast(Tensor, tokens.unflatten(0, (-1, prod(grid))))  # pyright: ignore
    count: int = tokens.shape[1]
    if grid is None:
        side = round(count**0.5)
        if side * side != count:
            raise GridError(f"{count} tokens do not lie on a square: pass grid=(rows, columns)")
        return tokens, 0, (side, side)
    if count < prod(grid):
        raise GridError(f"{count} tokens are fewer than the {prod(grid)} of a grid of {grid[0]} x {grid[1]}")
    return tokens, count - prod(grid), grid


def like_rows(rows: Tensor, tokens: Tensor) -> Tensor:
    """``[b, n, c]``, flat where ``tokens`` were flat."""
    return rows.flatten(0, 1) if tokens.ndim == 2 else rows


def in_own_dtype(compressor: nn.Module, tokens: Tensor, grid: tuple[int, int], **context: Tensor) -> Tensor:
    """Call a compressor in the dtype of its parameters; what comes out has the dtype of ``tokens``."""
    dtype = own_dtype(compressor, tokens)
    return compressor(tokens.to(dtype), grid, **context).to(tokens.dtype)


def own_dtype(compressor: nn.Module, tokens: Tensor) -> torch.dtype:
    parameter = next(compressor.parameters(), None)
    return tokens.dtype if parameter is None else parameter.dtype


def compress_frames(
    compressor: nn.Module, frames: Tensor, grid: tuple[int, int], **context: Tensor
) -> tuple[Tensor, Tensor]:
    """``[f, h*w, c]`` -> the tokens left, ``[n, c']``, and the place each had in ``f h w``, ``[n]``.

    A chosen token keeps its place; a folded one has that of the first corner of what it was folded from, and what
    lies on no grid is spread evenly.
    """
    dtype = own_dtype(compressor, frames)
    if isinstance(compressor, Choose):
        kept, places = compressor.select(frames.to(dtype), grid, **context)
        if not compressor.in_time:
            start = torch.arange(frames.shape[0], device=places.device)[:, None] * prod(grid)
            places = places + start
        return kept.to(frames.dtype).flatten(0, 1), places.flatten()
    folded = compressor(frames.to(dtype), grid, **context).to(frames.dtype)
    places = corners(frames.shape[0], grid, folded.shape[0], cast(Any, compressor).out_grid(grid), frames.device)
    return folded.flatten(0, 1), places


def corners(
    frames: int, grid: tuple[int, int], out_frames: int, out_grid: tuple[int, int], device: torch.device
) -> Tensor:
    """Places in ``f h w`` of folded tokens: the first corner of each block, ``[f' * h' * w']``."""

    def first(count: int, out: int) -> Tensor:
        return (torch.arange(out, device=device) * -(-count // out)).clamp(max=count - 1)

    t, h, w = (first(a, b) for a, b in zip((frames, *grid), (out_frames, *out_grid), strict=True))
    places = (t[:, None, None] * grid[0] + h[:, None]) * grid[1] + w
    return places.flatten()


def body(tokens: Tensor, block: Block) -> Tensor:
    """The grids of a block's tokens ``[length, c]`` without lead, newlines and tail: ``[frames, h*w, c]``."""
    if tokens.shape[0] != block.length:
        raise GridError(
            f"{tokens.shape[0]} tokens where {block.frames} x {block.grid[0]} x {block.grid[1]} and "
            f"{block.length - block.frames * prod(block.grid)} more were expected: the processor and the model differ"
        )
    h, w = block.grid
    grids = tokens[block.lead : block.length - block.tail]
    map_ = rearrange(grids, "(f h w) c -> f h w c", f=block.frames, h=h, w=w + block.newline)
    return rearrange(map_[:, :, :w], "f h w c -> f (h w) c")
