"""Quantize activations for int8 kernels: few passes over memory, because they are not hidden behind the product."""

import torch
from torch import Tensor

from nvila_kernels.quantization import INT8_MAX


def scaled_rows(x: Tensor, x_scale: Tensor | None, levels: int = INT8_MAX) -> tuple[Tensor, Tensor]:
    """``x / scale`` with a scale a token, or one for all, that makes the largest value ``levels``; not yet rounded.

    Args:
        x: float32 ``[m, k]``.
        x_scale: float32 ``[1]`` of 127 levels; None to measure each token.

    Returns: float32 ``[m, k]``, and the scale ``[m, 1]`` or ``[1, 1]``.
    """
    if x_scale is not None:
        scale = x_scale.reshape(1, 1) * (INT8_MAX / levels)
        return (x / scale).clamp_(-levels, levels), scale
    largest = torch.maximum(-x.amin(1, keepdim=True), x.amax(1, keepdim=True))  # aminmax is 20 times slower by rows
    scale = torch.where(largest == 0, 1.0, largest / levels)
    return x / scale, scale


def shifted_rows(x: Tensor, x_scale: Tensor | None, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """``x / scale - lowest`` in ``0..top``, not yet rounded; ``lowest`` is a whole number of at most 0 for each token.

    Takes what :func:`scaled_rows` takes; a scale for all tokens spreads ``top`` over its range to either side.

    Returns: float32 ``[m, k]``, the scale ``[m, 1]`` or ``[1, 1]``, and ``lowest``, of its shape.
    """
    if x_scale is not None:
        scaled, scale = scaled_rows(x, x_scale, top // 2)
        lowest = torch.full_like(scale, -(top // 2))
        return scaled.sub_(lowest), scale, lowest
    least, largest = x.amin(1, keepdim=True).clamp_(max=0), x.amax(1, keepdim=True).clamp_(min=0)
    scale = torch.where(
        least == largest, 1.0, (largest - least) / (top - 1)
    )  # one level is lost to rounding ``lowest``
    lowest = (least / scale).floor_()
    return (x / scale).sub_(lowest), scale, lowest


def int8_rows(x: Tensor, x_scale: Tensor | None) -> tuple[Tensor, Tensor]:
    """int8 ``[m, k]`` and the scale of :func:`scaled_rows`."""
    scaled, scale = scaled_rows(x, x_scale)
    return scaled.round_().to(torch.int8), scale
