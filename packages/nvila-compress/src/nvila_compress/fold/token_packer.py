"""TokenPacker: coarse tokens that look up their own detail.

Pooling makes a few coarse tokens with their places, and loses the detail. TokenPacker gives it back: each coarse token
attends to the fine tokens of its own neighbourhood, and to nothing else, so that attention costs one product a token
however large the picture is.
"""

import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from nvila_compress.contract import Fold


class TokenPacker(Fold):
    """Each mean of a factor x factor neighbourhood attends to the tokens of that neighbourhood.

    ``q = mean of the neighbourhood``, ``y = q + W_o attention(W_q norm(q), W_k norm(x), W_v norm(x))``, then
    ``y + feed_forward(y)``; keys and values are the ``factor^2`` tokens that ``q`` is the mean of.

    Args:
        channels: width of the tokens.
        factor: side of the neighbourhood; 2 keeps 1/4 of the tokens.
        heads: attention heads; they divide ``channels``.
        expansion: width of the feed-forward layer over ``channels``.

    Shapes: tokens ``[b, h*w, channels]`` -> ``[b, ceil(h/f)*ceil(w/f), channels]``, of the module's dtype. At the right
        and bottom a neighbourhood is what is left.
    Raises: GridError for other axes or tokens that do not lie on the grid; ValueError for a width other than
        ``channels``, numbers below 1, and heads that do not divide it.
    Source: Li et al., TokenPacker (arXiv 2407.02392), section 3.2, with the features of one layer of the tower as keys
        where the paper joins those of several.
    """

    def __init__(self, *, channels: int, factor: int = 2, heads: int = 8, expansion: int = 2) -> None:
        super().__init__()
        if min(channels, factor, heads, expansion) < 1 or channels % heads:
            raise ValueError(
                f"channels {channels}, factor {factor}, heads {heads}, expansion {expansion}: each must be at least 1, "
                "and heads must divide channels"
            )
        self.channels = channels
        self.factor = factor
        self.heads = heads
        self.expansion = expansion
        self.norm_coarse = nn.LayerNorm(channels)
        self.norm_fine = nn.LayerNorm(channels)
        self.to_q = nn.Linear(channels, channels)
        self.to_kv = nn.Linear(channels, 2 * channels)
        self.to_out = nn.Linear(channels, channels)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(channels),
            nn.Linear(channels, expansion * channels),
            nn.GELU(),
            nn.Linear(expansion * channels, channels),
        )

    @property
    def ratio(self) -> float:
        return float(self.factor**2)

    def out_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        return -(-grid[0] // self.factor), -(-grid[1] // self.factor)

    def out_channels(self, channels: int) -> int:
        if channels != self.channels:
            raise ValueError(f"tokens {channels} wide, but built for {self.channels}: pass channels={channels}")
        return channels

    def fold(self, tokens: Tensor, grid: tuple[int, int], **context: Tensor) -> Tensor:
        self.out_channels(tokens.shape[2])
        b, f, (h, w) = tokens.shape[0], self.factor, grid
        padded = (0, 0, 0, -w % f, 0, -h % f)
        fine = F.pad(rearrange(tokens, "b (h w) c -> b h w c", h=h, w=w), padded)
        fine = rearrange(fine, "b (h f1) (w f2) c -> (b h w) (f1 f2) c", f1=f, f2=f)
        real = F.pad(tokens.new_ones(1, h, w, 1), padded)
        real = repeat(real, "1 (h f1) (w f2) 1 -> (b h w) (f1 f2) 1", b=b, f1=f, f2=f)
        coarse = (fine * real).sum(dim=1, keepdim=True) / real.sum(dim=1, keepdim=True)
        packed = coarse + self.attend(self.norm_coarse(coarse), self.norm_fine(fine), real)
        packed = packed + self.feed_forward(packed)
        return rearrange(packed, "(b n) 1 c -> b n c", b=b)

    def attend(self, coarse: Tensor, fine: Tensor, real: Tensor) -> Tensor:
        """Each coarse token over its own real fine ones.

        Shapes: ``[m, 1, c]``, ``[m, f*f, c]``, real ``[m, f*f, 1]`` -> ``[m, 1, c]``.
        """
        q = rearrange(self.to_q(coarse), "m q (h d) -> m h q d", h=self.heads)
        k, v = rearrange(self.to_kv(fine), "m n (two h d) -> two m h n d", two=2, h=self.heads)
        mask = rearrange(real > 0, "m n 1 -> m 1 1 n")
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.to_out(rearrange(attended, "m h q d -> m q (h d)"))

    def extra_repr(self) -> str:
        return f"factor={self.factor}"
