"""Casts to float8 (e4m3, e5m2): by a known scale, by row, transposed; the largest absolute value; the scaled product.

Values are clamped to the largest finite code before the conversion: that of e5m2 would give infinity otherwise.
Needs sm_89, the first architecture that converts to e4m3 in hardware; before it the reference runs.
"""
# ruff: noqa: N803, SIM108 - constants of a kernel are in capitals; a constexpr branch is a statement
# pyright: basic, reportArgumentType=false, reportAssignmentType=false, reportRedeclaration=false
# pyright: reportIndexIssue=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportCallIssue=false
# The body of a kernel is triton's language, whose functions carry no usable types; a launch, kernel[grid](...), takes
# options that are no arguments of the function.

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from nvila_kernels import reference
from nvila_kernels.pack import BLOCK
from nvila_kernels.quantization import FP8_MAX, FP8_SMALLEST_SCALE
from nvila_kernels.triton.byte_product import multiply_bytes
from nvila_kernels.triton.tiles import FP8, UNFUSED, architecture, row_options, tile_of
from nvila_kernels.triton.w8a8 import WIDEST_ROW

FIRST_ARCHITECTURE = 89
ELEMENTS = 1024


@triton.jit
def cast(
    x, scale, codes, largest, M, K, LIMIT: tl.constexpr, BY_ROW: tl.constexpr, AMAX: tl.constexpr, BLOCK: tl.constexpr
):
    """``clamp(x * (1 / scale))``, one scale or one a row; if asked, ``largest[program] = max|x|`` of its block."""
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offset < M.to(tl.int64) * K
    value = tl.load(x + offset, mask=inside, other=0.0).to(tl.float32)
    if BY_ROW:
        step = tl.load(scale + offset // K, mask=inside, other=1.0)
    else:
        step = tl.load(scale)
    if AMAX:
        tl.store(largest + tl.program_id(0), tl.max(tl.abs(value), axis=0))
    value = tl.clamp(value * tl.math.div_rn(1.0, step), -LIMIT, LIMIT)
    tl.store(codes + offset, value.to(codes.dtype.element_ty), mask=inside)


@triton.jit
def cast_rows(x, codes, scale, K, LIMIT: tl.constexpr, SMALLEST: tl.constexpr, BLOCK: tl.constexpr):
    """Each row by its own largest value, read once."""
    row = tl.program_id(0).to(tl.int64)
    feature = tl.arange(0, BLOCK)
    inside = feature < K
    value = tl.load(x + row * K + feature, mask=inside, other=0.0).to(tl.float32)
    largest = tl.max(tl.abs(value), axis=0)
    step = tl.where(largest == 0.0, 1.0, tl.maximum(tl.math.div_rn(largest, LIMIT), SMALLEST))
    tl.store(scale + row, step)
    value = tl.clamp(value * tl.math.div_rn(1.0, step), -LIMIT, LIMIT)
    tl.store(codes + row * K + feature, value.to(codes.dtype.element_ty), mask=inside)


@triton.jit
def cast_transposed(x, scale, codes, M, K, LIMIT: tl.constexpr, BLOCK: tl.constexpr):
    """``codes[k, m]`` of ``x[m, k]``, one scale for all, in square tiles."""
    m = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = (m[:, None] < M) & (k[None, :] < K)
    value = tl.load(x + m[:, None].to(tl.int64) * K + k[None, :], mask=inside, other=0.0).to(tl.float32)
    value = tl.clamp(value * tl.math.div_rn(1.0, tl.load(scale)), -LIMIT, LIMIT)
    tile = tl.trans(value.to(codes.dtype.element_ty))
    tl.store(codes + k[:, None].to(tl.int64) * M + m[None, :], tile, mask=(m[None, :] < M) & (k[:, None] < K))


@triton.jit
def block_amax(x, largest, COUNT, BLOCK: tl.constexpr):
    """``largest[program] = max|x|`` of one block; torch reduces the rest, so that no atomic is needed."""
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + offset, mask=offset < COUNT, other=0.0).to(tl.float32)
    tl.store(largest + tl.program_id(0), tl.max(tl.abs(value), axis=0))


def _converts(x: Tensor) -> bool:
    return x.device.type != "cuda" or architecture(x.device) >= FIRST_ARCHITECTURE


def _cast(x: Tensor, scale: Tensor, dtype: torch.dtype, largest: Tensor | None) -> Tensor:
    codes = x.new_empty(x.shape, dtype=dtype)
    if codes.numel():
        cast[(triton.cdiv(codes.numel(), ELEMENTS),)](
            x.contiguous(), scale, codes, scale if largest is None else largest, x.shape[0], x.shape[1],
            LIMIT=FP8_MAX[dtype], BY_ROW=scale.numel() > 1, AMAX=largest is not None, BLOCK=ELEMENTS, **UNFUSED,
        )  # fmt: skip
    return codes


def cast_fp8(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """``clamp(x * (1 / scale))``; scale ``[1]`` for all or ``[m]``, one a row."""
    return _cast(x, scale, dtype, None) if _converts(x) else reference.cast_fp8(x, scale, dtype)


def cast_fp8_amax(x: Tensor, scale: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """:func:`cast_fp8` and ``max|x|`` as float32 ``[1]``, in one pass over ``x``."""
    if not _converts(x) or x.numel() == 0:
        return reference.cast_fp8_amax(x, scale, dtype)
    largest = x.new_empty((triton.cdiv(x.numel(), ELEMENTS),), dtype=torch.float32)
    codes = _cast(x, scale, dtype, largest)
    return codes, largest.amax().reshape(1)


def cast_fp8_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Each row scaled by its own largest value: codes ``[m, k]``, float32 scales ``[m]``."""
    if not _converts(x) or x.shape[1] > WIDEST_ROW:
        return reference.cast_fp8_rows(x, dtype)
    codes = x.new_empty(x.shape, dtype=dtype)
    scale = x.new_empty((x.shape[0],), dtype=torch.float32)
    if codes.numel():
        block = triton.next_power_of_2(x.shape[1])
        cast_rows[(x.shape[0],)](
            x.contiguous(), codes, scale, x.shape[1],
            LIMIT=FP8_MAX[dtype], SMALLEST=FP8_SMALLEST_SCALE, BLOCK=block, **row_options(block),
        )  # fmt: skip
    return codes, scale


def cast_fp8_transposed(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """:func:`cast_fp8` with one scale for all, written as a contiguous ``[k, m]``."""
    if not _converts(x):
        return reference.cast_fp8_transposed(x, scale, dtype)
    codes = x.new_empty((x.shape[1], x.shape[0]), dtype=dtype)
    if codes.numel():
        grid = (triton.cdiv(x.shape[0], 64), triton.cdiv(x.shape[1], 64))
        cast_transposed[grid](
            x.contiguous(), scale, codes, x.shape[0], x.shape[1], LIMIT=FP8_MAX[dtype], BLOCK=64, **UNFUSED
        )
    return codes


def amax(x: Tensor) -> Tensor:
    """``max|x|`` as float32 ``[1]``."""
    if x.numel() == 0:
        return x.new_zeros((1,), dtype=torch.float32)
    blocks = triton.cdiv(x.numel(), 4096)
    largest = x.new_empty((blocks,), dtype=torch.float32)
    block_amax[(blocks,)](x.contiguous(), largest, x.numel(), BLOCK=4096, **UNFUSED)
    return largest.amax().reshape(1)


def fp8_linear(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """float8 ``[m, k]`` times float8 ``[n, k]``, scaled, with bias: ``[m, n]`` of ``dtype``."""
    if not _converts(x):
        return reference.fp8_linear(x, x_scale, weight, weight_scale, bias, dtype)
    out = x.new_empty((x.shape[0], weight.shape[0]), dtype=dtype)
    if x.shape[1] % BLOCK:
        x, weight = pad_codes(x), pad_codes(weight)
    tile = tile_of(FP8, max(architecture(x.device), FIRST_ARCHITECTURE), x.shape[0])
    return multiply_bytes(x.contiguous(), x_scale, weight.contiguous(), weight_scale, bias, out, tile)


def pad_codes(codes: Tensor) -> Tensor:
    """Zeros up to a multiple of 128 features; torch cannot pad float8 itself."""
    missing = -codes.shape[1] % BLOCK
    return F.pad(codes.view(torch.uint8), (0, missing)).view(codes.dtype)
