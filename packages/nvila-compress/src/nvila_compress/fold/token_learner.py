"""TokenLearner: a small network draws each output token as a weighted mean of all input tokens.

One map of weights for each token that comes out, learned from the input itself. NVILA compares it with
folding (Table 1, mean of 10 benchmarks at 121 tokens: 69.8, where 3x3 folding with vision-encoder
pre-training has 70.8).
"""

from einops import rearrange
from torch import Tensor, einsum, nn

from nvila_compress.contract import Fold, square_or_row


class TokenLearner(Fold):
    """Choose a fixed number of tokens, each a learned weighted mean of all tokens.

    ``weights = softmax_n(W2 gelu(W1 norm(x)))`` over the ``n = h*w`` inputs, ``y = weights^T x``.
    ``W2`` has no bias: the softmax would cancel it.

    Args:
        channels: width of the tokens.
        tokens: how many come out, 121 as in the paper's comparison.
        hidden: width of the hidden layer that makes the weights, 64 as in the authors' code.

    Shapes: tokens ``[b, h*w, channels]`` -> ``[b, tokens, channels]``, of the module's dtype.
    Raises: GridError for other axes, or if a ``grid`` is given and the token count is not ``h * w``; ValueError
        for a width other than ``channels``.
    Source: Ryoo et al., TokenLearner (arXiv 2106.11297), the MLP variant of the authors' code (version 1.1);
        NVILA, Table 1.
    """

    grid_free = True

    def __init__(self, *, channels: int, tokens: int = 121, hidden: int = 64) -> None:
        super().__init__()
        if min(channels, tokens, hidden) < 1:
            raise ValueError(f"channels {channels}, tokens {tokens}, hidden {hidden}: each must be at least 1")
        self.channels = channels
        self.tokens = tokens
        self.hidden = hidden
        self.weights = nn.Sequential(
            nn.LayerNorm(channels),
            nn.Linear(channels, hidden),
            nn.GELU(),
            nn.Linear(hidden, tokens, bias=False),
        )

    def out_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        """A square of ``tokens``, or one row where they make no square: they have no place in the image."""
        return square_or_row(self.tokens)

    def out_channels(self, channels: int) -> int:
        if channels != self.channels:
            raise ValueError(f"tokens {channels} wide, but built for {self.channels}: pass channels={channels}")
        return channels

    def fold(self, tokens: Tensor, grid: tuple[int, int], **context: Tensor) -> Tensor:
        self.out_channels(tokens.shape[2])
        weights = rearrange(self.weights(tokens), "b n t -> b t n").softmax(dim=-1)
        return einsum("b t n, b n c -> b t c", weights, tokens)
