"""8-bit weights and activations: quantize rows (alone, after GELU, after LayerNorm); the product and its epilogue.

A row is held in registers from the first read to the last write. Codes are padded with zeros to a multiple of 128.
"""
# ruff: noqa: N803 - constants of a kernel are in capitals; a constexpr branch is a statement
# pyright: basic, reportArgumentType=false, reportAssignmentType=false, reportRedeclaration=false
# pyright: reportIndexIssue=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportCallIssue=false
# The body of a kernel is triton's language, whose functions carry no usable types; a launch, kernel[grid](...), takes
# options that are no arguments of the function.

import torch
import triton
import triton.language as tl
from torch import Tensor

from nvila_kernels import signatures
from nvila_kernels.quantization import padded_features
from nvila_kernels.triton.byte_product import multiply_bytes
from nvila_kernels.triton.rounding import gelu_tanh, nearest_int8
from nvila_kernels.triton.tiles import UNFUSED, assembly, row_options
from nvila_kernels.triton.timed_tiles import tile_for

WIDEST_ROW = 65536
"""Features that one program can hold in registers."""


@triton.jit
def store_row(value, feature, codes, scale, row, PADDED: tl.constexpr, ASM: tl.constexpr):
    """Write the codes of one row and its scale ``max|x| / 127`` (1 for a row of zeros)."""
    largest = tl.max(tl.abs(value), axis=0)
    largest = tl.where(largest == 0.0, 127.0, largest)
    tl.store(scale + row, tl.math.div_rn(largest, 127.0))
    code = nearest_int8(value * tl.math.div_rn(127.0, largest), ASM)
    tl.store(codes + row * PADDED + feature, code.to(tl.int8), mask=feature < PADDED)


@triton.jit
def quantize_rows_kernel(
    x, codes, scale, K, GELU: tl.constexpr, PADDED: tl.constexpr, ASM: tl.constexpr, BLOCK: tl.constexpr
):
    """One scale a row, after GELU (tanh) if asked."""
    row = tl.program_id(0).to(tl.int64)
    feature = tl.arange(0, BLOCK)
    value = tl.load(x + row * K + feature, mask=feature < K, other=0.0).to(tl.float32)
    if GELU:
        value = gelu_tanh(value)
    store_row(value, feature, codes, scale, row, PADDED, ASM)


@triton.jit
def layer_norm_quantize_kernel(
    x, weight, bias, codes, scale, K, epsilon, PADDED: tl.constexpr, ASM: tl.constexpr, BLOCK: tl.constexpr
):
    """LayerNorm in float32, then one scale a row."""
    row = tl.program_id(0).to(tl.int64)
    feature = tl.arange(0, BLOCK)
    inside = feature < K
    value = tl.load(x + row * K + feature, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(value, axis=0) / K
    centred = tl.where(inside, value - mean, 0.0)
    variance = tl.sum(centred * centred, axis=0) / K
    normal = centred * tl.math.div_rn(1.0, tl.math.sqrt_rn(variance + epsilon))
    gain = tl.load(weight + feature, mask=inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + feature, mask=inside, other=0.0).to(tl.float32)
    store_row(normal * gain + shift, feature, codes, scale, row, PADDED, ASM)


@triton.jit
def quantize_static_kernel(x, scale, codes, M, K, PADDED: tl.constexpr, ASM: tl.constexpr, BLOCK: tl.constexpr):
    """One scale for all, known beforehand: ``clamp(round(x * (1 / scale)))``."""
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = offset // PADDED
    feature = offset % PADDED
    value = tl.load(x + row * K + feature, mask=(row < M) & (feature < K), other=0.0).to(tl.float32)
    code = nearest_int8(value * tl.math.div_rn(1.0, tl.load(scale)), ASM)
    tl.store(codes + offset, code.to(tl.int8), mask=row < M)


def _row_block(features: int) -> int:
    if features > WIDEST_ROW:
        raise ValueError(
            f"a row of {features} features exceeds the {WIDEST_ROW} that one program holds: use the reference backend"
        )
    return triton.next_power_of_2(features)


def _empty_rows(x: Tensor) -> tuple[Tensor, Tensor, int]:
    codes, scale = signatures.quantize_rows(x)
    return codes, scale, codes.shape[1]


def _quantize(x: Tensor, gelu: bool) -> tuple[Tensor, Tensor]:
    codes, scale, padded = _empty_rows(x)
    if codes.numel():
        block = _row_block(padded)
        quantize_rows_kernel[(x.shape[0],)](
            x.contiguous(), codes, scale, x.shape[1],
            GELU=gelu, PADDED=padded, ASM=assembly(), BLOCK=block, **row_options(block),
        )  # fmt: skip
    return codes, scale


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """One scale a token: int8 ``[m, padded k]``, float32 ``[m]``."""
    return _quantize(x, gelu=False)


def gelu_quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """``quantize_rows(gelu_tanh(x))`` in one pass."""
    return _quantize(x, gelu=True)


def layer_norm_quantize(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """``quantize_rows(layer_norm(x))`` in one pass."""
    codes, scale, padded = _empty_rows(x)
    if codes.numel():
        block = _row_block(padded)
        layer_norm_quantize_kernel[(x.shape[0],)](
            x.contiguous(), weight, bias, codes, scale, x.shape[1], epsilon,
            PADDED=padded, ASM=assembly(), BLOCK=block, **row_options(block),
        )  # fmt: skip
    return codes, scale


def quantize_static(x: Tensor, scale: Tensor) -> Tensor:
    """One scale for all: int8 ``[m, padded k]``."""
    codes, _, padded = _empty_rows(x)
    if codes.numel():
        quantize_static_kernel[(triton.cdiv(codes.numel(), 1024),)](
            x.contiguous(), scale, codes, x.shape[0], x.shape[1], PADDED=padded, ASM=assembly(), BLOCK=1024, **UNFUSED
        )
    return codes


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
    out = x.new_empty((x.shape[0], weight.shape[0]), dtype=dtype)
    tile = tile_for("w8a8", x.device, x.shape[0], x.shape[1], weight.shape[0])
    return multiply_bytes(x, x_scale, weight, weight_scale, bias, out, tile, gelu=gelu)


def int8_linear_requantize(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    gelu: bool,
    out_scale: Tensor,
) -> Tensor:
    """:func:`int8_linear` quantized again with a static scale: int8 ``[m, padded n]``."""
    out = x.new_empty((x.shape[0], padded_features(weight.shape[0])), dtype=torch.int8)
    tile = tile_for("w8a8", x.device, x.shape[0], x.shape[1], weight.shape[0])
    return multiply_bytes(x, x_scale, weight, weight_scale, bias, out, tile, gelu=gelu, out_scale=out_scale)
