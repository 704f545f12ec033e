"""Base of the compressors that merge: each token joins one that goes on, and the mean goes on in its place."""

from abc import abstractmethod

import torch
from einops import rearrange, repeat
from torch import Tensor

from nvila_compress.contract import Choose, highest, in_float32


class Merge(Choose):
    """A chooser whose kept tokens are the means of all that joined them.

    A subclass writes ``pair``. What it gets is in float32 and has no gradient; the means are of the tokens as they
    came, taken in float32, and every token that joined has its part of the gradient.

    Args:
        keep: a number of tokens or a share of them.

    Shapes: tokens ``[b, n, c]`` -> ``[b, count, c]``, or ``[1, count, c]`` of a video.
    Raises: as ``Choose``.
    """

    @abstractmethod
    def pair(self, tokens: Tensor, count: int, grid: tuple[int, int], **context: Tensor) -> Tensor:
        """For each token the position of the one it joins, ``[b, n, c]`` -> ``[b, n]``; a video is one row.

        Exactly ``count`` tokens of a row join themselves: they keep their positions. ``-1`` is for a token that is
        dropped.
        """
        ...

    def weigh(self, tokens: Tensor, owners: Tensor, **context: Tensor) -> Tensor:
        """The weight of each token in its mean, above 0, given what ``pair`` returned: ``[b, n]``."""
        return tokens.new_ones(owners.shape)

    def choose(self, tokens: Tensor, count: int, grid: tuple[int, int], **context: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), torch.autocast(tokens.device.type, enabled=False):
            raised = {key: in_float32(value) for key, value in context.items()}
            owners = self.pair(in_float32(tokens), count, grid, **raised)
            weights = self.weigh(in_float32(tokens), owners, **raised)
            stays = owners == torch.arange(owners.shape[1], device=owners.device)
            positions = highest(stays.float(), count)
            slots = (stays.cumsum(dim=1) - 1).gather(1, owners.clamp_min(0))
            slots = torch.where(owners < 0, count, slots)
        if self.in_time:
            tokens = rearrange(tokens, "t n c -> 1 (t n) c")
        return mean_of_groups(tokens, weights, slots, count), positions


def mean_of_groups(tokens: Tensor, weights: Tensor, slots: Tensor, count: int) -> Tensor:
    """Weighted mean of the tokens of each slot; those of slot ``count`` are dropped.

    Shapes: tokens ``[b, n, c]``, weights and slots ``[b, n]`` -> ``[b, count, c]``, of the tokens' dtype.
    """
    b, _, c = tokens.shape
    x = in_float32(tokens)
    index = repeat(slots, "b n -> b n c", c=c)
    sums = x.new_zeros(b, count + 1, c).scatter_add(1, index, x * weights[:, :, None])
    totals = x.new_zeros(b, count + 1).scatter_add(1, slots, weights.to(x.dtype))
    return (sums[:, :count] / totals[:, :count, None]).to(tokens.dtype)
