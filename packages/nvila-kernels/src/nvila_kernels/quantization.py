"""The arithmetic of quantization: from floats to codes and scales, and back.

``w4``  ``weight ~ scale * (code - zero)``, codes 0..15, one scale and zero point for each group of input
features
``w8``  ``weight ~ scale * code``, codes -127..127, one scale an output channel (or a token, for activations)
``fp8`` ``value ~ scale * code``, codes float8, one scale a tensor or a row

Scales are rounded to the type they are stored in *before* the codes are chosen, so that the codes fit the
scale that the kernel will multiply with.
"""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from nvila_kernels.pack import BLOCK, blocks

__all__ = [
    "FP8_MAX",
    "FP8_SMALLEST_SCALE",
    "INT8_MAX",
    "Int4Codes",
    "Int8Codes",
    "dequantize_int4",
    "fp8_scale",
    "grouped",
    "pad_features",
    "padded_features",
    "per_feature",
    "quantize_int4",
    "quantize_int8",
    "quantize_int8_static",
]

INT8_MAX = 127
FP8_MAX = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0}
"""The largest finite value of each float8 type."""

FP8_SMALLEST_SCALE = 2.0**-126
"""Of a float8 tensor: below it the reciprocal is infinite, and zeros would become NaN."""


@dataclass(frozen=True, kw_only=True)
class Int4Codes:
    """A 4-bit weight as plain tensors: what every format is read into and written from.

    codes: uint8 ``[n, k]``, each 0..15.
    scale: floating point ``[n, ceil(k / group_size)]``.
    zero: uint8 ``[n, ceil(k / group_size)]``; 8 everywhere for a symmetric weight.
    group_size: input features that share one scale; ``k`` for a whole row.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor
    group_size: int

    def __post_init__(self) -> None:
        n, k = self.codes.shape
        groups = -(-k // self.group_size)
        for name, tensor in (("scale", self.scale), ("zero", self.zero)):
            if tuple(tensor.shape) != (n, groups):
                raise ValueError(
                    f"{name} has shape {tuple(tensor.shape)}, codes {n} x {k} in groups of "
                    f"{self.group_size} need "
                    f"{(n, groups)}: check the group size"
                )

    @property
    def in_features(self) -> int:
        return self.codes.shape[1]

    @property
    def out_features(self) -> int:
        return self.codes.shape[0]


@dataclass(frozen=True, kw_only=True)
class Int8Codes:
    """An 8-bit weight as plain tensors.

    codes: int8 ``[n, k]``, each -127..127.
    scale: float32 ``[n]``.
    x_scale: float32 ``[1]``, the one scale of all activations; None if each token has its own.
    """

    codes: Tensor
    scale: Tensor
    x_scale: Tensor | None = None


def grouped(values: Tensor, group_size: int) -> Tensor:
    """``[n, k] -> [n, g, group_size]``, the last group padded by repeating the last feature."""
    n, k = values.shape
    missing = -k % group_size
    if missing:
        values = torch.cat([values, values[:, -1:].expand(n, missing)], dim=1)
    return rearrange(values, "n (g s) -> n g s", s=group_size)


def per_feature(values: Tensor, in_features: int, group_size: int) -> Tensor:
    """``[n, g] -> [n, k]``: each group's value for each of its features."""
    return values.repeat_interleave(group_size, dim=1)[:, :in_features]


def quantize_int4(
    weight: Tensor, *, group_size: int = BLOCK, symmetric: bool = False, dtype: torch.dtype = torch.float16
) -> Int4Codes:
    """Round to nearest, 4 bits.

    asymmetric: ``scale = (max - min) / 15``, ``zero = round(-min / scale)``, where the range always holds 0;
    symmetric: ``scale = max|w| / 7``, ``zero = 8``.

    Args:
        weight: ``[n, k]``, any float type.
        group_size: input features that share a scale; 0 for a whole row.
        dtype: of the scales, float16 or bfloat16.

    Raises: ValueError if the weight is not finite.
    """
    group_size = min(group_size, weight.shape[1]) or weight.shape[1]
    values = grouped(weight.float(), group_size)
    lowest, highest = values.amin(-1).clamp(max=0), values.amax(-1).clamp(min=0)
    if not bool(torch.isfinite(highest - lowest).all()):
        raise ValueError(
            "the weight holds values that are not finite, which no scale can represent: repair the checkpoint"
        )
    span = torch.maximum(-lowest, highest) / 7 if symmetric else (highest - lowest) / 15
    scale = span.to(dtype)
    scale = torch.where(scale < torch.finfo(dtype).tiny, torch.ones_like(scale), scale)
    wide = scale.float()
    zero = torch.full_like(wide, 8) if symmetric else (-lowest / wide).round().clamp(0, 15)
    levels = (values / wide[..., None]).round_().add_(zero[..., None]).clamp_(0, 15)
    codes = rearrange(levels.to(torch.uint8), "n g s -> n (g s)")[:, : weight.shape[1]].contiguous()
    return Int4Codes(codes=codes, scale=scale, zero=zero.to(torch.uint8), group_size=group_size)


def dequantize_int4(weight: Int4Codes, dtype: torch.dtype = torch.float32) -> Tensor:
    """``scale * (code - zero)`` as ``[n, k]``.

    The scale is first rounded to ``dtype``, and the product once more: what a kernel that multiplies in
    ``dtype`` computes.
    """
    scale = weight.scale.to(dtype)
    zero = per_feature(weight.zero, weight.in_features, weight.group_size).to(dtype)
    return (weight.codes.to(dtype) - zero) * per_feature(scale, weight.in_features, weight.group_size)


def quantize_int8(values: Tensor, *, padded: int | None = None) -> tuple[Tensor, Tensor]:
    """Symmetric 8 bits, one scale a row: ``scale = max|x| / 127``, ``code = round(x * (127 / max|x|))``.

    A row of zeros gets scale 1. Rounding is to nearest, ties to even.

    Shapes: ``[..., k]`` -> int8 ``[..., padded]`` (zeros beyond ``k``), float32 ``[...]``.
    """
    wide = values.float()
    largest = wide.abs().amax(-1)
    largest = torch.where(largest == 0, torch.full_like(largest, INT8_MAX), largest)
    factor = torch.full_like(largest, INT8_MAX) / largest  # 127 / largest would multiply with a rounded reciprocal
    codes = (wide * factor[..., None]).round().clamp(-INT8_MAX, INT8_MAX).to(torch.int8)
    return pad_features(codes, padded), largest / INT8_MAX


def quantize_int8_static(values: Tensor, scale: Tensor, *, padded: int | None = None) -> Tensor:
    """Symmetric 8 bits with a scale known beforehand: ``code = clamp(round(x * (1 / scale)), -127, 127)``.

    Shapes: ``[..., k]``, scale float32 ``[1]`` -> int8 ``[..., padded]``.
    """
    codes = (values.float() * (1.0 / scale)).round().clamp(-INT8_MAX, INT8_MAX).to(torch.int8)
    return pad_features(codes, padded)


def fp8_scale(largest: Tensor, dtype: torch.dtype) -> Tensor:
    """``max|x| / largest finite code``, at least ``FP8_SMALLEST_SCALE``; 1 where everything is zero.

    Shapes: float32 of any shape -> the same.
    """
    scale = (largest / FP8_MAX[dtype]).clamp_min(FP8_SMALLEST_SCALE)
    return torch.where(largest == 0, torch.ones_like(scale), scale)


def pad_features(codes: Tensor, padded: int | None) -> Tensor:
    """Zeros after the last feature, up to ``padded`` of them (none if it is None)."""
    if padded is None or padded == codes.shape[-1]:
        return codes
    return torch.nn.functional.pad(codes, (0, padded - codes.shape[-1]))


def padded_features(in_features: int) -> int:
    """``in_features`` rounded up to a multiple of 128: SigLIP's 4304 becomes 4352."""
    return blocks(in_features) * BLOCK
