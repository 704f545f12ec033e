"""Narrow the range of a group: its extreme weights lose a little, all others gain a finer step.

The error of a group on the calibration activations, ``|x_g (w_g - w'_g)|^2``, is measured for a grid of
narrower ranges, for all groups and rows of a weight at once. Only ``x_g^T x_g`` counts there, so the rows are
first replaced by the triangle of their QR decomposition, which has no more rows than a group has features.

Groups are searched one by one, and errors of neighbouring groups may add up. The choice is therefore confirmed
for each output row as a whole, and dropped where plain rounding does better.

Source: AWQ (arXiv 2306.00978), the authors' code; the confirmation is ours.
"""

from collections.abc import Sequence
from typing import cast

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from nvila_kernels.policy import W4A16
from nvila_kernels.quantization import Int4Codes, dequantize_int4, grouped, per_feature

RATIOS = tuple(1 - step / 20 for step in range(1, 11))
"""Fractions of a group's range that are tried, besides all of it: 0.95 to 0.5."""

ROWS_AT_ONCE = 512


def round_int4(weight: Tensor, rows: Tensor | None, scheme: W4A16) -> Int4Codes:
    """Quantize ``[n, k]`` as the scheme asks. Raises: ValueError if it asks for clipping and there are no rows."""
    if not scheme.clip:
        return scheme.quantize(weight)
    if rows is None:
        raise ValueError(f"{scheme} needs calibration activations, none were given: pass observed")
    return clip_int4(weight, rows, scheme)


@torch.no_grad()
def clip_int4(weight: Tensor, rows: Tensor, scheme: W4A16) -> Int4Codes:
    """Quantize with the range of each group that costs least on the calibration rows.

    On those rows no output channel has a larger error than by rounding to nearest.

    Shapes: weight ``[n, k]``, rows ``[r, k]``, both float.
    """
    group_size = min(scheme.group_size, weight.shape[1]) or weight.shape[1]
    rows = rows.float()
    basis = group_basis(rows, group_size)
    parts = [clip_part(part.float(), rows, basis, scheme) for part in in_parts(weight, ROWS_AT_ONCE)]
    codes, scale, zero = (torch.cat([getattr(part, name) for part in parts]) for name in ("codes", "scale", "zero"))
    return Int4Codes(codes=codes, scale=scale, zero=zero, group_size=group_size)


def group_basis(rows: Tensor, group_size: int) -> Tensor:
    """``[r, k] -> [g, min(r, s), s]`` with the same ``x_g^T x_g``; the last group padded with zeros."""
    padded = F.pad(rows, (0, -rows.shape[1] % group_size))
    groups = rearrange(padded, "r (g s) -> g r s", s=group_size)
    return cast(Tensor, torch.linalg.qr(groups, mode="r").R)  # pyright: ignore[reportUnknownMemberType]


def group_errors(difference: Tensor, basis: Tensor) -> Tensor:
    """``|x_g d_g|^2`` of each group of each row: ``[n, k] -> [n, g]``."""
    size = basis.shape[2]
    groups = rearrange(F.pad(difference, (0, -difference.shape[1] % size)), "n (g s) -> n g s", s=size)
    return torch.einsum("n g s, g b s -> n g b", groups, basis).square().sum(-1)


def narrowed(weight: Tensor, ratio: Tensor, group_size: int) -> Tensor:
    """Clamp each group to ``ratio`` ``[n, g]`` of its range, which always holds 0."""
    values = grouped(weight, group_size)
    low, high = values.amin(-1).clamp(max=0) * ratio, values.amax(-1).clamp(min=0) * ratio
    k = weight.shape[1]
    return weight.clamp(min=per_feature(low, k, group_size), max=per_feature(high, k, group_size))


def clip_part(weight: Tensor, rows: Tensor, basis: Tensor, scheme: W4A16) -> Int4Codes:
    """:func:`clip_int4` for a few output rows."""
    plain = scheme.quantize(weight)
    size = plain.group_size
    difference = weight - dequantize_int4(plain)
    least, ratio = group_errors(difference, basis), torch.ones_like(plain.scale, dtype=torch.float32)
    for candidate in RATIOS:
        tried = scheme.quantize(narrowed(weight, torch.full_like(ratio, candidate), size))
        errors = group_errors(weight - dequantize_int4(tried), basis)
        ratio = torch.where(errors < least, candidate, ratio)
        least = torch.minimum(least, errors)
    clipped = scheme.quantize(narrowed(weight, ratio, size))
    better = row_errors(weight - dequantize_int4(clipped), rows) < row_errors(difference, rows)
    pick = better[:, None]
    return Int4Codes(
        codes=torch.where(pick, clipped.codes, plain.codes),
        scale=torch.where(pick, clipped.scale, plain.scale),
        zero=torch.where(pick, clipped.zero, plain.zero),
        group_size=size,
    )


def row_errors(difference: Tensor, rows: Tensor) -> Tensor:
    """``|x d|^2`` of each output row: ``[n, k] -> [n]``."""
    return (difference @ rows.T).square().sum(-1)


def in_parts(weight: Tensor, count: int) -> Sequence[Tensor]:
    """The weight cut into pieces of ``count`` output rows."""
    return [weight[start : start + count] for start in range(0, len(weight), count)]
