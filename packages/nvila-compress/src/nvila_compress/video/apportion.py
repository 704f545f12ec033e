"""Divide one budget among frames by weight, to the last token."""

import torch
from torch import Tensor


def apportion(scores: Tensor, weights: Tensor, count: int, free: Tensor | None = None) -> Tensor:
    """The ``count`` tokens of a video that go on when each frame gets its share, its best tokens first.

    The token of rank ``r`` in frame ``t`` costs ``(r + 1/2) / weights[t]``, and the cheapest go on. That is the method
    of Sainte-Lague, by which parliaments divide their seats: each frame's number is its share of the weights rounded
    up or down, they add up exactly, and a frame that has no more tokens leaves its seats to the others.

    Args:
        scores: what each token is worth within its frame, ``[t, n]``; of equal ones the first is the better.
        weights: of the frames, ``[t]``, above 0.
        count: how many go on, at most ``t * n``, or the sum of ``free``.
        free: how many tokens of each frame may go on, its best, ``[t]``; all if not given.

    Returns: their positions in the video, ``frame * n + place``, ``[count]``, the cheapest first.
    """
    order = scores.argsort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1).to(scores.dtype)
    cost = (rank + 0.5) / weights[:, None]
    if free is not None:
        cost = cost.masked_fill(rank >= free[:, None], torch.inf)
    return cost.flatten().argsort(stable=True)[:count]


def mask_of(positions: Tensor, like: Tensor) -> Tensor:
    """True at the positions of a video: ``[count]`` -> ``[t, n]``."""
    return torch.zeros_like(like, dtype=torch.bool).flatten().scatter(0, positions, True).view(like.shape)
