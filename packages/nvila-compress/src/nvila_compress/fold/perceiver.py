"""Perceiver Resampler: learned queries read the tokens by cross-attention, layer after layer.

The compressor of Flamingo and of many models after it. NVILA finds it the weakest of the three at equal data
(Table 1: mean of 10 benchmarks 59.4 at 121 tokens): nothing in it knows where a token came from, so all of
that must be learned.
"""

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from nvila_compress.contract import Fold, square_or_row


class PerceiverResampler(Fold):
    """Read the tokens into a fixed number of learned latents.

    Each layer: ``z = z + attention(norm(z), [norm(x), norm(z)])``, ``z = z + feed_forward(z)``; last
    ``norm(z)``. The latents attend to the tokens and to themselves.

    Args:
        channels: width of the tokens.
        tokens: how many come out, 121 as in NVILA's comparison.
        depth: layers, 6 as in Flamingo.
        heads: attention heads.
        head_dim: width of a head.
        expansion: width of the feed-forward layer over ``channels``.

    Shapes: tokens ``[b, h*w, channels]`` -> ``[b, tokens, channels]``, of the module's dtype.
    Raises: GridError for other axes, or if a ``grid`` is given and the token count is not ``h * w``; ValueError
        for a width other than ``channels``.
    Source: Alayrac et al., Flamingo (arXiv 2204.14198), section 3.1 and appendix A.1.1, without the frame
        embeddings, since each row holds one image; NVILA, Table 1.
    """

    grid_free = True

    def __init__(
        self,
        *,
        channels: int,
        tokens: int = 121,
        depth: int = 6,
        heads: int = 8,
        head_dim: int = 64,
        expansion: int = 4,
    ) -> None:
        super().__init__()
        if min(channels, tokens, depth, heads, head_dim, expansion) < 1:
            raise ValueError(
                f"channels {channels}, tokens {tokens}, depth {depth}, heads {heads}, head_dim {head_dim}, "
                f"expansion {expansion}: each must be at least 1"
            )
        self.channels = channels
        self.tokens = tokens
        self.depth = depth
        self.heads = heads
        self.head_dim = head_dim
        self.expansion = expansion
        self.latents = nn.Parameter(torch.randn(tokens, channels) * 0.02)
        self.layers = nn.ModuleList(
            ResamplerLayer(channels=channels, heads=heads, head_dim=head_dim, expansion=expansion) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(channels)

    def out_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """A square of ``tokens``, or one row where they make no square: they have no place in the image."""
        return square_or_row(self.tokens)

    def out_channels(self, channels: int) -> int:
        if channels != self.channels:
            raise ValueError(f"tokens {channels} wide, but built for {self.channels}: pass channels={channels}")
        return channels

    def fold(self, tokens: Tensor, grid: tuple[int, int], **context: Tensor) -> Tensor:
        self.out_channels(tokens.shape[2])
        latents = repeat(self.latents, "t c -> b t c", b=tokens.shape[0])
        for layer in self.layers:
            latents = layer(latents, tokens)
        return self.norm(latents)


class ResamplerLayer(nn.Module):
    """One step of the resampler: cross-attention, then a feed-forward layer, each added to the latents.

    Shapes: latents ``[b, t, c]``, tokens ``[b, n, c]`` -> ``[b, t, c]``.
    """

    def __init__(self, *, channels: int, heads: int, head_dim: int, expansion: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_tokens = nn.LayerNorm(channels)
        self.norm_latents = nn.LayerNorm(channels)
        self.to_q = nn.Linear(channels, heads * head_dim, bias=False)
        self.to_kv = nn.Linear(channels, 2 * heads * head_dim, bias=False)
        self.to_out = nn.Linear(heads * head_dim, channels, bias=False)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(channels),
            nn.Linear(channels, expansion * channels, bias=False),
            nn.GELU(),
            nn.Linear(expansion * channels, channels, bias=False),
        )

    def forward(self, latents: Tensor, tokens: Tensor) -> Tensor:
        latents = latents + self.attend(self.norm_latents(latents), self.norm_tokens(tokens))
        return latents + self.feed_forward(latents)

    def attend(self, latents: Tensor, tokens: Tensor) -> Tensor:
        """Attention of the latents over tokens and latents together."""
        q = rearrange(self.to_q(latents), "b t (h d) -> b h t d", h=self.heads)
        keys_values = self.to_kv(torch.cat([tokens, latents], dim=1))
        k, v = rearrange(keys_values, "b n (two h d) -> two b h n d", two=2, h=self.heads)
        return self.to_out(rearrange(F.scaled_dot_product_attention(q, k, v), "b h t d -> b t (h d)"))
