"""Every operation in plain torch: the oracle of the tests and the backend of last resort.

Written to be read, in float32 (or exact integers), with no regard for speed. The other backends are compared
with this one.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from nvila_kernels.pack import unpack_int4, unpack_scale_zero
from nvila_kernels.quantization import (
    FP8_MAX,
    Int4Codes,
    dequantize_int4,
    fp8_scale,
    padded_features,
    quantize_int8,
    quantize_int8_static,
)


def int4_codes(
    packed: Tensor, scale_zero: Tensor, in_features: int, group_size: int, scale_dtype: torch.dtype
) -> Int4Codes:
    """Unpack a weight in the kernels' layout; ``group_size`` 0 stands for a whole row."""
    group_size = group_size or in_features
    groups = -(-in_features // group_size)
    scale, zero = unpack_scale_zero(scale_zero[:groups], scale_dtype)
    return Int4Codes(codes=unpack_int4(packed, in_features), scale=scale, zero=zero, group_size=group_size)


def dequantize(
    packed: Tensor,
    scale_zero: Tensor,
    in_features: int,
    group_size: int,
    scale_dtype: torch.dtype,
    dtype: torch.dtype,
) -> Tensor:
    """``scale * (code - zero)`` in ``dtype``, ``[n, k]``."""
    return dequantize_int4(int4_codes(packed, scale_zero, in_features, group_size, scale_dtype), dtype)


def w4a16_linear(
    x: Tensor,
    packed: Tensor,
    scale_zero: Tensor,
    bias: Tensor | None,
    group_size: int,
    scale_dtype: torch.dtype,
    half_accumulate: bool,
) -> Tensor:
    """``x @ dequantize(weight).T + bias`` in float32, rounded once to ``x.dtype``; ``half_accumulate``
    changes nothing here.
    """
    weight = dequantize(packed, scale_zero, x.shape[-1], group_size, scale_dtype, torch.float32)
    return F.linear(x.float(), weight, None if bias is None else bias.float()).to(x.dtype)


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """One scale a token: int8 ``[m, padded k]``, float32 ``[m]``."""
    return quantize_int8(x, padded=padded_features(x.shape[-1]))


def quantize_static(x: Tensor, scale: Tensor) -> Tensor:
    """One scale for all: int8 ``[m, padded k]``."""
    return quantize_int8_static(x, scale, padded=padded_features(x.shape[-1]))


def gelu_quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """``quantize_rows(gelu_tanh(x))``, the activation in float32."""
    return quantize_rows(F.gelu(x.float(), approximate="tanh"))


def layer_norm_quantize(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """``quantize_rows(layer_norm(x))``, the norm in float32."""
    return quantize_rows(F.layer_norm(x.float(), x.shape[-1:], weight.float(), bias.float(), epsilon))


def int8_accumulate(x: Tensor, weight: Tensor) -> Tensor:
    """The exact integer product ``x @ weight.T`` as int32; float64 holds every partial sum exactly."""
    return (x.double() @ weight.double().T).to(torch.int32)


def int8_output(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, gelu: bool
) -> Tensor:
    """``gelu(sum * x_scale * weight_scale + bias)`` in float32."""
    out = int8_accumulate(x, weight).float() * x_scale[:, None] * weight_scale
    if bias is not None:
        out = out + bias.float()
    return F.gelu(out, approximate="tanh") if gelu else out


def int8_linear(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    gelu: bool,
    dtype: torch.dtype,
) -> Tensor:
    """int8 ``[m, k]`` times int8 ``[n, k]``, scaled, with bias and GELU: ``[m, n]`` of ``dtype``."""
    return int8_output(x, x_scale, weight, weight_scale, bias, gelu).to(dtype)


def int8_linear_requantize(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    gelu: bool,
    out_scale: Tensor,
) -> Tensor:
    """:func:`int8_linear` quantized again with the static scale of the layer that follows: int8 ``[m, padded
    n]``.
    """
    return quantize_static(int8_output(x, x_scale, weight, weight_scale, bias, gelu), out_scale)


def cast_fp8(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """``clamp(x * (1 / scale))`` in ``dtype``; float32 scale ``[1]`` for all or ``[m]``, one a row of ``x``
    ``[m, k]``.
    """
    limit = FP8_MAX[dtype]
    return (x.float() * (1.0 / scale)[:, None]).clamp(-limit, limit).to(dtype)


def cast_fp8_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Each row scaled by its own largest value: codes ``[m, k]``, float32 scales ``[m]``."""
    scale = fp8_scale(x.float().abs().amax(-1), dtype)
    return cast_fp8(x, scale, dtype), scale


def cast_fp8_transposed(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """:func:`cast_fp8` with one scale for all, written as a contiguous ``[k, m]``: what a backward product
    reads.
    """
    return cast_fp8(x, scale, dtype).T.contiguous()


def cast_fp8_amax(x: Tensor, scale: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """:func:`cast_fp8` and :func:`amax` of the same tensor: what delayed scaling needs."""
    return cast_fp8(x, scale, dtype), amax(x)


def fp8_linear(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """``(x @ weight.T) * x_scale * weight_scale + bias`` in float32: float8 ``[m, k]`` and ``[n, k]``, ``[m, n]`` of
    ``dtype``; scales are ``[1]`` or one a row of their operand.
    """
    out = (x.float() @ weight.float().T) * x_scale[:, None] * weight_scale
    return (out if bias is None else out + bias.float()).to(dtype)


def amax(x: Tensor) -> Tensor:
    """``max|x|`` as float32 ``[1]``; 0 of nothing."""
    return x.float().abs().amax().reshape(1) if x.numel() else x.new_zeros((1,), dtype=torch.float32)
