"""Compression along time: averages over groups of frames, and over blocks of frames, rows and columns.

Neighbouring frames say nearly the same. NVILA reads more of them and averages their tokens in groups
(section 2.1.2, Table 2: 256 frames pooled 8x score 64.0 with the tokens of 32 frames, which score 61.0).

When a length does not divide by its group, the last group is the mean of what is left: 10 frames in
groups of 4 make 3 frames, of 4, 4 and 2. No frame is dropped and none counts twice. (Upstream has two
behaviours here: one raises, the other repeats the last frame until the group is full. Where the length
divides, all three are the same.)
"""

from collections.abc import Iterable

import torch
from einops import rearrange
from torch import Tensor, nn

from nvila_compress.contract import GridError, check_axes, resolve_grid


class TemporalAverage(nn.Module):
    """Average the tokens of each group of neighbouring frames.

    ``(t g) n c -> t n c`` by mean; the last group averages the frames that are left. No parameters.

    Args:
        group: how many frames become one.

    Shapes: ``[frames, h*w, c]`` -> ``[ceil(frames/group), h*w, c]``, the frames of one video.
    Raises: GridError for other axes, if there is no frame, or a ``grid`` is given and the token count is not
        ``h * w``; ValueError if ``group`` is less than 1.
    Source: NVILA, section 2.1.2 and Table 2.
    """

    def __init__(self, group: int) -> None:
        super().__init__()
        if group < 1:
            raise ValueError(f"group {group} < 1: 1 keeps every frame, 8 keeps 1/8")
        self.group = group

    @property
    def ratio(self) -> float:
        return float(self.group)

    def out_frames(self, frames: int) -> int:
        """How many frames come out of ``frames``: ``ceil(frames / group)``."""
        return -(-frames // self.group)

    def out_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        return grid

    def out_channels(self, channels: int) -> int:
        return channels

    def forward(self, tokens: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        check_axes(tokens)
        if grid is not None:
            resolve_grid(tokens.shape[1], grid)
        if tokens.shape[0] < 1:
            raise GridError("0 frames have no average: pass the tokens of at least one frame")
        return mean_groups(tokens, self.group, 0)

    def extra_repr(self) -> str:
        return f"group={self.group}"


class SpatioTemporalPool(nn.Module):
    """Average-pool a video at several sizes at once (upstream's "TSP").

    For each size ``(t, h, w)``: mean over blocks of ``t`` frames, ``h`` rows and ``w`` columns. The sizes are
    handed back apart, because a model puts its start and end tokens around each pooled frame and a separator
    after each size. No parameters.

    Args:
        sizes: the pool sizes, each ``(frames, rows, columns)``; NVILA-8B-Video has one, ``(8, 1, 1)``.

    Shapes: ``[frames, h*w, c]`` -> for each size ``[ceil(frames/t), ceil(h/h_i)*ceil(w/w_i), c]``.
    Raises: GridError for other axes, if there is no frame, or the token count is not ``h * w``; ValueError for no
        size or a size that is not three numbers of at least 1.
    Source: ``TSPVideoEncoder`` of the public code; NVILA, section 2.1.2.
    """

    def __init__(self, sizes: Iterable[Iterable[int]]) -> None:
        super().__init__()
        listed = [tuple(size) for size in sizes]
        if not listed:
            raise ValueError("no pool size: pass at least one (frames, rows, columns), such as (8, 1, 1)")
        for size in listed:
            if len(size) != 3 or min(size) < 1:
                raise ValueError(f"pool size {size} is not three numbers >= 1: pass (frames, rows, columns)")
        self.sizes: list[tuple[int, int, int]] = [(t, h, w) for t, h, w in listed]

    def out_shapes(self, frames: int, grid: tuple[int, int]) -> list[tuple[int, int, int]]:
        """For each size, the ``(frames, rows, columns)`` that come out of ``frames`` grids."""
        rows, columns = grid
        return [(-(-frames // t), -(-rows // h), -(-columns // w)) for t, h, w in self.sizes]

    def forward(self, tokens: Tensor, grid: tuple[int, int] | None = None) -> list[Tensor]:
        check_axes(tokens)
        rows, columns = resolve_grid(tokens.shape[1], grid)
        if tokens.shape[0] < 1:
            raise GridError("0 frames have no average: pass the tokens of at least one frame")
        video = rearrange(tokens, "t (h w) c -> t h w c", h=rows, w=columns)
        return [rearrange(_pool(video, size), "t h w c -> t (h w) c") for size in self.sizes]

    def extra_repr(self) -> str:
        return f"sizes={self.sizes}"


def mean_groups(x: Tensor, group: int, dim: int) -> Tensor:
    """Mean over groups of ``group`` neighbours along ``dim``; the last group holds what is left."""
    if group == 1:
        return x
    length = x.shape[dim]
    whole = length - length % group
    parts: list[Tensor] = []
    if whole:
        parts.append(torch.unflatten(x.narrow(dim, 0, whole), dim, (whole // group, group)).mean(dim + 1))
    if whole < length:
        parts.append(x.narrow(dim, whole, length - whole).mean(dim, keepdim=True))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def _pool(video: Tensor, size: tuple[int, int, int]) -> Tensor:
    """``(t g1) (h g2) (w g3) c -> t h w c`` by mean, one axis after the other as upstream does."""
    for dim, group in enumerate(size):
        video = mean_groups(video, group, dim)
    return video
