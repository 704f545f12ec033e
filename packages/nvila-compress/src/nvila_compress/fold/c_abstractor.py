"""C-Abstractor (Honeybee): convolutions around a pooling.

A resampler may choose any number of tokens but has to learn where things are; a linear projector keeps places but
every token. Honeybee's abstractor has both: residual convolution blocks, which mix what is near, adaptive pooling to
the size that is wanted, and convolution blocks again. What comes out lies on a grid.
"""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from nvila_compress.contract import Fold


class CAbstractor(Fold):
    """Residual convolution blocks, average pooling to a grid, residual convolution blocks.

    ``y = B2(pool(B1(x)))``; ``B`` is ``depth`` times ``x + SE(conv)(x)``: 1 x 1, depthwise 3 x 3, squeeze and
    excitation, 1 x 1, each convolution normalised over channels, SiLU between.

    Args:
        channels: width of the tokens.
        grid: the ``(rows, columns)`` that come out, at most; ``(12, 12)`` as in the paper.
        depth: blocks before and after the pooling, 3 as in the paper.
        hidden: width within the blocks; as wide as the tokens if 0.

    Shapes: tokens ``[b, h*w, channels]`` -> ``[b, min(h, h')*min(w, w'), channels]``, of the module's dtype.
    Raises: GridError for other axes or tokens that do not lie on the grid; ValueError for a width other than
        ``channels`` and for numbers below 1.
    Source: Cha et al., Honeybee (arXiv 2312.06742), section 3.2 and figure 4. There the blocks are RegNet bottlenecks
        and positions are added before; here the tower's own positions must do.
    """

    def __init__(self, *, channels: int, grid: tuple[int, int] = (12, 12), depth: int = 3, hidden: int = 0) -> None:
        super().__init__()
        rows, columns = grid
        if min(channels, rows, columns, depth) < 1 or hidden < 0:
            raise ValueError(
                f"channels {channels}, grid {rows} x {columns}, depth {depth}: each must be at least 1, "
                f"and hidden {hidden} at least 0"
            )
        self.channels = channels
        self.grid = (rows, columns)
        self.depth = depth
        self.hidden = hidden
        self.before = nn.Sequential(*(ConvolutionBlock(channels, hidden or channels) for _ in range(depth)))
        self.after = nn.Sequential(*(ConvolutionBlock(channels, hidden or channels) for _ in range(depth)))

    def out_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        return min(grid[0], self.grid[0]), min(grid[1], self.grid[1])

    def out_channels(self, channels: int) -> int:
        if channels != self.channels:
            raise ValueError(f"tokens {channels} wide, but built for {self.channels}: pass channels={channels}")
        return channels

    def fold(self, tokens: Tensor, grid: tuple[int, int], **context: Tensor) -> Tensor:
        self.out_channels(tokens.shape[2])
        map_ = rearrange(tokens, "b (h w) c -> b c h w", h=grid[0], w=grid[1])
        map_ = F.adaptive_avg_pool2d(self.before(map_), self.out_grid(grid))
        return rearrange(self.after(map_), "b c h w -> b (h w) c")

    def extra_repr(self) -> str:
        return f"grid={self.grid}"


class ConvolutionBlock(nn.Module):
    """A residual bottleneck: 1 x 1, depthwise 3 x 3, squeeze and excitation, 1 x 1.

    Shapes: ``[b, c, h, w]`` -> the same.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        squeezed = max(1, channels // 4)
        self.reduce = nn.Conv2d(channels, hidden, 1, bias=False)
        self.mix = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False)
        self.squeeze = nn.Conv2d(hidden, squeezed, 1)
        self.excite = nn.Conv2d(squeezed, hidden, 1)
        self.expand = nn.Conv2d(hidden, channels, 1, bias=False)
        self.norms = nn.ModuleList(nn.GroupNorm(1, width) for width in (hidden, hidden, channels))

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.norms[0](self.reduce(x)))
        y = F.silu(self.norms[1](self.mix(y)))
        y = y * self.excite(F.silu(self.squeeze(y.mean(dim=(2, 3), keepdim=True)))).sigmoid()
        return F.silu(x + self.norms[2](self.expand(y)))
