"""The two choices that know nothing: at random, and evenly spaced.

Every table of compressors must hold them. Many published choosers beat them by little, and some by nothing, at equal
tokens: neighbouring tokens of a tower say nearly the same, so that what is evenly spread covers most of the picture.
"""

import torch
from torch import Tensor

from nvila_compress.contract import Choose


class RandomChoice(Choose):
    """Keep tokens drawn without replacement, the same places in every image of a given size.

    The places are those of the highest of ``n`` numbers drawn from ``seed``, so that a choice can be repeated, and an
    image does not depend on those beside it.

    Args:
        keep: a number of tokens or a share of them.
        seed: of the draw.

    Shapes: tokens ``[b, n, c]`` -> ``[b, count, c]``.
    Raises: as ``Choose``.
    """

    def __init__(self, keep: int | float = 0.25, *, seed: int = 0) -> None:
        super().__init__(keep)
        self.seed = seed

    def score(self, tokens: Tensor, grid: tuple[int, int], **context: Tensor) -> Tensor:
        draw = torch.arange(tokens.shape[1], device=tokens.device)
        return hashed(draw, self.seed).expand(tokens.shape[0], -1)


class UniformChoice(Choose):
    """Keep tokens evenly spaced in reading order.

    The ``i``-th of ``k`` kept of ``n`` is at ``floor((2 i + 1) n / (2 k))``, the middle of the ``i``-th of ``k`` equal
    parts.

    Args:
        keep: a number of tokens or a share of them.

    Shapes: tokens ``[b, n, c]`` -> ``[b, count, c]``.
    Raises: as ``Choose``.
    """

    def pick(self, tokens: Tensor, count: int, grid: tuple[int, int], **context: Tensor) -> Tensor:
        places = (2 * torch.arange(count, device=tokens.device) + 1) * tokens.shape[1] // (2 * count)
        return places.expand(tokens.shape[0], -1)


def hashed(x: Tensor, seed: int) -> Tensor:
    """A fixed pseudo-random float32 in ``[0, 1)`` for each integer: a draw that repeats anywhere, compiled or not."""
    x = (x + 0x9E3779B9 * (seed + 1)) & 0xFFFFFFFF
    for factor in (0x45D9F3B, 0x119DE1F3):
        x = ((x ^ (x >> 16)) * factor) & 0xFFFFFFFF
    return ((x ^ (x >> 16)) >> 8).float() / (1 << 24)
