"""Average pooling: the plainest compressor, and hard to beat.

The mean of each neighbourhood, or of each cell of a grid of a given size. LLaVA-OneVision pools its video frames so,
and "DeCo" (arXiv 2405.20985) found that it does as well as learned resamplers. Every table should hold it.
"""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from nvila_compress.contract import Fold
from nvila_compress.video.temporal_average import mean_groups


class AveragePool(Fold):
    """The mean of each factor x factor neighbourhood.

    ``(h f1) (w f2) c -> (h w) c`` by mean; at the right and bottom, what is left. No parameters.

    Args:
        factor: side of the neighbourhood; 2 keeps 1/4 of the tokens.

    Shapes: tokens ``[b, h*w, c]`` -> ``[b, ceil(h/f)*ceil(w/f), c]``, of any dtype.
    Raises: GridError for other axes or tokens that do not lie on the grid; ValueError for a factor below 1.
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        if factor < 1:
            raise ValueError(f"factor {factor} < 1: 1 keeps every token, 2 keeps 1/4")
        self.factor = factor

    @property
    def ratio(self) -> float:
        return float(self.factor**2)

    def out_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        return -(-grid[0] // self.factor), -(-grid[1] // self.factor)

    def fold(self, tokens: Tensor, grid: tuple[int, int], **context: Tensor) -> Tensor:
        map_ = rearrange(tokens, "b (h w) c -> b h w c", h=grid[0], w=grid[1])
        return rearrange(mean_groups(mean_groups(map_, self.factor, 1), self.factor, 2), "b h w c -> b (h w) c")

    def extra_repr(self) -> str:
        return f"factor={self.factor}"


class AdaptivePool(Fold):
    """The mean of each cell of a grid of a given size, whatever size the tokens' grid has.

    Row ``i`` of ``h'`` is the mean of the rows from ``floor(i h / h')`` to ``ceil((i + 1) h / h')``, columns alike;
    neighbouring cells share a row where it does not divide. A side shorter than asked for stays as it is. No
    parameters.

    Args:
        grid: the ``(rows, columns)`` that come out, at most.

    Shapes: tokens ``[b, h*w, c]`` -> ``[b, min(h, h')*min(w, w'), c]``, of any dtype.
    Raises: GridError for other axes or tokens that do not lie on the grid; ValueError for a side below 1.
    """

    def __init__(self, grid: tuple[int, int]) -> None:
        super().__init__()
        rows, columns = grid
        if rows < 1 or columns < 1:
            raise ValueError(f"a grid of {rows} x {columns} holds no token: each side must be at least 1")
        self.grid = (rows, columns)

    def out_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        return min(grid[0], self.grid[0]), min(grid[1], self.grid[1])

    def fold(self, tokens: Tensor, grid: tuple[int, int], **context: Tensor) -> Tensor:
        map_ = rearrange(tokens, "b (h w) c -> b c h w", h=grid[0], w=grid[1])
        return rearrange(F.adaptive_avg_pool2d(map_, self.out_grid(grid)), "b c h w -> b (h w) c")

    def extra_repr(self) -> str:
        return f"grid={self.grid}"
