"""Casts to float8 (e4m3, e5m2): by a known scale, by row, transposed; and the largest absolute value.

Values are clamped to the largest finite code before the conversion: that of e5m2 would give infinity otherwise.
Needs sm_89, the first architecture that converts to e4m3 in hardware.
"""
# ruff: noqa: N803, SIM108 - constants of a kernel are in capitals; a constexpr branch is a statement
# pyright: basic, reportArgumentType=false, reportAssignmentType=false, reportRedeclaration=false
# pyright: reportIndexIssue=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# The body of a kernel is triton's language, whose functions carry no usable types.

import triton
import triton.language as tl


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
