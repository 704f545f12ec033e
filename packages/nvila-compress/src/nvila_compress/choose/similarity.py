"""Cosines between tokens: what most choosers compare by."""

import torch.nn.functional as F
from torch import Tensor


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """``a_i . b_j / (|a_i| |b_j|)``: ``[..., n, c]``, ``[..., m, c]`` -> ``[..., n, m]``; 0 for a token of zeros."""
    return F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).mT
