"""A compressor and the linear layer that reads what it makes.

Every vision-language model of the LLaVA kind has one linear layer that first reads the tokens of the vision
tower (after a fixed pixel shuffle or a norm, in some). Behind it, each token goes its own way. So a
compressor put directly in front of that layer changes how many tokens the language model sees, and nothing
else.

Folding also makes the tokens wider, and the layer must follow. Its new weight starts as n copies of the old
one, each divided by n: the output is then the old output for the mean of the n folded tokens. That is the
best guess before any training, and since each of the n tokens has its own columns now, training can tell them
apart. (At the bottom and right edge, where the grid was padded, zeros count in that mean.)
"""

from typing import cast

import torch
from einops import repeat
from torch import Tensor, nn

from nvila_compress.contract import Compressor


class CompressedLinear(nn.Module):
    """Compress the tokens, then apply the widened linear layer.

    Args:
        compressor: any ``Compressor`` that is an ``nn.Module``.
        linear: the layer that read the uncompressed tokens; it is left as it is.

    Shapes: tokens ``[b, n, c]`` on a square grid -> ``[b, n', out_features]``.
    Raises: GridError if the tokens do not lie on a square and the compressor needs a grid.
    """

    def __init__(self, compressor: Compressor, linear: nn.Linear) -> None:
        super().__init__()
        self.compressor = compressor
        self.linear = widen(linear, compressor.out_channels(linear.in_features))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.linear(self.compressor(tokens))


def widen(linear: nn.Linear, in_features: int) -> nn.Linear:
    """A layer for ``n`` tokens laid side by side that starts as ``linear`` of their mean.

    ``weight' = repeat(weight, "o c -> o (n c)") / n``, the bias unchanged.

    Args:
        linear: the layer for one token, ``[out, c]``.
        in_features: width of what it shall read, ``n * c``.

    Returns: a new layer of the same dtype, device and trainability.
    Raises: ValueError if ``in_features`` is no multiple of the layer's own.
    """
    if in_features % linear.in_features:
        raise ValueError(
            f"{in_features} input features are no multiple of {linear.in_features}: "
            "pass a layer made for the tokens that are folded"
        )
    n = in_features // linear.in_features
    weight, bias = linear.weight, cast(Tensor | None, linear.bias)
    wide = nn.Linear(in_features, linear.out_features, bias=bias is not None, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        wide.weight.copy_(repeat(weight / n, "o c -> o (n c)", n=n))
        if bias is not None:
            wide.bias.copy_(bias)
    return wide.requires_grad_(weight.requires_grad)
