"""Averages of a video over blocks of frames, rows and columns, at several sizes at once.

What NVILA's video models use. With one size ``(8, 1, 1)`` it is ``TemporalAverage(8)``; a second size, coarser in
space and finer in time, gives the language model both at once. Edges that do not divide average what is left.
"""

from collections.abc import Iterable

from einops import rearrange
from torch import Tensor, nn

from nvila_compress.contract import GridError, check_axes, resolve_grid
from nvila_compress.video.temporal_average import mean_groups


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


def _pool(video: Tensor, size: tuple[int, int, int]) -> Tensor:
    """``(t g1) (h g2) (w g3) c -> t h w c`` by mean, one axis after the other as upstream does."""
    for dim, group in enumerate(size):
        video = mean_groups(video, group, dim)
    return video
