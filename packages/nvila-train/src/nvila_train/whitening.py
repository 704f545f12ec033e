"""A better-conditioned first layer, for learning to see from nothing.

Neighbouring pixels are nearly equal and most paper is white, so the gradient of the patch embedding is almost all one
direction (how bright is the patch) and the strokes that tell letters apart drown in it. The embedding's weight is
therefore learnt as ``V @ (E[x x^T] + eps)^(-1/2)``: in the coordinates of ``V`` all directions of a patch are about as
large. The product is an ordinary weight; ``fold`` puts it back, and nothing of this is left in the model.
"""

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

EPSILON = 0.03
"""Added to every variance, in squared pixel values of -1 to 1; above the variance of noise."""


class Whitened(nn.Module):
    """``V -> V A`` for a fixed symmetric ``A``. Shapes: ``[width, 3, p, p]`` -> the same."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)

    def forward(self, weight: Tensor) -> Tensor:
        return (weight.flatten(1) @ self.matrix).view_as(weight)


def inverse_root(tiles: Tensor, *, patch: int) -> Tensor:
    """``(E[x x^T] + EPSILON)^(-1/2)`` over the patches of tiles.

    Shapes: tiles ``[n, 3, s, s]`` -> ``[3 p p, 3 p p]``.
    """
    patches = tiles.unfold(2, patch, patch).unfold(3, patch, patch)
    rows = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, 3 * patch * patch)
    values, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
    return vectors @ torch.diag((values.clamp(min=0) + EPSILON).rsqrt()) @ vectors.T


def whiten(convolution: nn.Conv2d, matrix: Tensor) -> None:
    """Learn the weight in whitened coordinates from now on; its present value is replaced."""
    nn.init.normal_(convolution.weight, std=0.4 * matrix.shape[0] ** -0.5)
    parametrize.register_parametrization(convolution, "weight", Whitened(matrix), unsafe=False)


def fold(convolution: nn.Conv2d) -> None:
    """Make the weight an ordinary one again, with its present value."""
    if parametrize.is_parametrized(convolution, "weight"):
        parametrize.remove_parametrizations(convolution, "weight", leave_parametrized=True)
