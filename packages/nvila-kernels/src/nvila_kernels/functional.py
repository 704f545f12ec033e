"""Quantized linear algebra as functions: shapes are checked here, any number of leading dimensions is
welcome.
"""

import torch
from torch import Tensor

from nvila_kernels import ops
from nvila_kernels.pack import BLOCK, blocks, kernel_group, kernel_groups
from nvila_kernels.quantization import FP8_MAX, fp8_scale, padded_features

__all__ = ["cast_fp8", "cast_fp8_transposed", "fp8_linear", "w4a16_linear", "w8a8_linear"]


def w4a16_linear(
    x: Tensor,
    packed: Tensor,
    scale_zero: Tensor,
    bias: Tensor | None = None,
    *,
    group_size: int = BLOCK,
    scale_dtype: torch.dtype = torch.float16,
    accumulate: torch.dtype = torch.float32,
) -> Tensor:
    """``x @ (scale * (codes - zero)).T + bias`` with 4-bit codes.

    Args:
        x: ``[..., k]``, float16, bfloat16 or (on the CPU) float32.
        packed: int16 ``[ceil(k/128), n, 32]`` of :func:`~nvila_kernels.pack_int4`.
        scale_zero: int32 ``[groups, n]`` of :func:`~nvila_kernels.pack.pack_scale_zero`.
        bias: ``[n]``.
        group_size: input features that share a scale: 32, 64, a multiple of 128, or ``k`` (or 0) for a whole
            row.
        scale_dtype: type of the scales inside ``scale_zero``.
        accumulate: float32, or float16 to sum each group in float16 on the tensor cores (float16 activations
            only). A group sum overflows from activations of about 34: scale them first.

    Returns: ``[..., n]`` of ``x.dtype``.
    Raises: ValueError on shapes that do not belong together, or float16 accumulation of other activations.
    """
    k, n = x.shape[-1], packed.shape[1]
    if blocks(k) != packed.shape[0]:
        raise ValueError(
            f"x has {k} features, the packed weight has {packed.shape[0]} blocks of {BLOCK}: pass "
            f"activations of the weight's width"
        )
    group = kernel_group(k, group_size)
    groups = kernel_groups(k, group)
    if tuple(scale_zero.shape) != (groups, n):
        raise ValueError(
            f"scale_zero has shape {tuple(scale_zero.shape)}, {k} features in groups of {group or k} need "
            f"{(groups, n)}: "
            "check the group size"
        )
    if accumulate not in (torch.float32, torch.float16):
        raise ValueError(f"{accumulate} cannot accumulate: use torch.float32 or torch.float16")
    if accumulate == torch.float16 and x.dtype != torch.float16:
        raise ValueError(f"float16 accumulation needs float16 activations, not {x.dtype}: accumulate in float32")
    rows = x.reshape(-1, k)
    out = ops.w4a16_linear(rows, packed, scale_zero, bias, group, scale_dtype, accumulate == torch.float16)
    return out.reshape(*x.shape[:-1], n)


def w8a8_linear(
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    *,
    x_scale: Tensor | None = None,
    gelu: bool = False,
) -> Tensor:
    """Quantize ``x`` to int8 and multiply it with an int8 weight: ``[..., k] -> [..., n]`` of ``x.dtype``.

    ``(codes(x) @ weight.T) * x_scale * weight_scale + bias``, then GELU (tanh) if asked.

    Args:
        x: ``[..., k]``, any float type.
        weight: int8 ``[n, k']``, ``k'`` being ``k`` padded with zeros to a multiple of 128.
        weight_scale: float32 ``[n]``.
        bias: ``[n]``.
        x_scale: float32 ``[1]``, a static scale; each token gets its own where it is None.

    Raises: ValueError on shapes that do not belong together.
    """
    k = x.shape[-1]
    if weight.shape[1] != padded_features(k):
        raise ValueError(
            f"the weight has {weight.shape[1]} features, x has {k}, which pads to {padded_features(k)}: pad "
            f"the weight with zeros"
        )
    rows = x.reshape(-1, k)
    if x_scale is None:
        codes, scale = ops.quantize_rows(rows)
    else:
        codes, scale = ops.quantize_static(rows, x_scale), x_scale
    out = ops.int8_linear(codes, scale, weight, weight_scale, bias, gelu, x.dtype)
    return out.reshape(*x.shape[:-1], weight.shape[0])


def cast_fp8(
    x: Tensor, dtype: torch.dtype = torch.float8_e4m3fn, *, scale: Tensor | None = None, by_row: bool = False
) -> tuple[Tensor, Tensor]:
    """Cast to float8 with a scale: ``x ~ codes * scale``.

    Args:
        x: ``[..., k]``, any float type.
        dtype: ``float8_e4m3fn`` (weights, activations) or ``float8_e5m2`` (gradients).
        scale: float32 ``[1]`` known beforehand (delayed scaling); values beyond the largest code saturate.
        by_row: one scale for each row instead of one for all; excludes ``scale``.

    Returns: codes ``[..., k]`` and the float32 scale, ``[1]`` or ``[..., 1]``.
    Raises: ValueError for another type, or if both ``scale`` and ``by_row`` are given.
    """
    check_fp8(dtype)
    if scale is not None and by_row:
        raise ValueError("a given scale and one scale a row exclude each other: drop one of the two")
    rows = x.reshape(-1, x.shape[-1])
    if by_row:
        codes, row_scale = ops.cast_fp8_rows(rows, dtype)
        return codes.reshape(x.shape), row_scale.reshape(*x.shape[:-1], 1)
    if scale is None:
        scale = fp8_scale(ops.amax(rows), dtype)
    return ops.cast_fp8(rows, scale, dtype).reshape(x.shape), scale


def cast_fp8_transposed(
    x: Tensor, dtype: torch.dtype = torch.float8_e4m3fn, *, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """:func:`cast_fp8` with one scale for all, the codes written as the transpose: what a backward product reads.

    Args:
        x: ``[m, k]``, any float type.
        dtype, scale: as :func:`cast_fp8` takes them.

    Returns: codes ``[k, m]``, contiguous, and the float32 scale ``[1]``.
    Raises: ValueError for another type, or another number of dimensions.
    """
    check_fp8(dtype)
    if x.ndim != 2:
        raise ValueError(f"x has {x.ndim} dimensions, a transpose needs 2: pass one [m, k] matrix")
    if scale is None:
        scale = fp8_scale(ops.amax(x), dtype)
    return ops.cast_fp8_transposed(x, scale, dtype), scale


def check_fp8(dtype: torch.dtype) -> None:
    """Raises: ValueError for a type that is no float8 known here."""
    if dtype not in FP8_MAX:
        raise ValueError(f"{dtype} is no float8 type known here: use torch.float8_e4m3fn or torch.float8_e5m2")


def fp8_linear(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """``(x @ weight.T) * x_scale * weight_scale + bias`` of float8 operands, summed in float32.

    Args:
        x: ``[..., k]``, float8 codes of :func:`cast_fp8`.
        x_scale: float32 ``[1]``, or ``[..., 1]``, one a row.
        weight: ``[n, k]``, float8 codes.
        weight_scale: float32 ``[1]``, or one a row of the weight.
        bias: ``[n]``.
        dtype: of the result.

    Returns: ``[..., n]`` of ``dtype``.
    Raises: ValueError for other operands, or shapes that do not belong together.
    """
    for name, operand in (("x", x), ("the weight", weight)):
        if operand.dtype not in FP8_MAX:
            raise ValueError(f"{name} is {operand.dtype}, not float8: cast it with cast_fp8")
    k, n = x.shape[-1], weight.shape[0]
    if weight.shape[1] != k:
        raise ValueError(f"x has {k} features, the weight has {weight.shape[1]}: pass operands of one width")
    rows = x.reshape(-1, k)
    for name, scale, length in (("x_scale", x_scale, rows.shape[0]), ("weight_scale", weight_scale, n)):
        if scale.numel() not in (1, length):
            raise ValueError(f"{name} holds {scale.numel()} scales: pass one for all or one for each of {length} rows")
    out = ops.fp8_linear(rows, x_scale.reshape(-1), weight, weight_scale.reshape(-1), bias, dtype)
    return out.reshape(*x.shape[:-1], n)
