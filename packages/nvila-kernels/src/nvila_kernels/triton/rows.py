"""Quantize activations to int8, a row a program: alone, behind GELU, behind LayerNorm.

A row is held in registers from the first read to the last write. Codes are padded with zeros to a multiple of 128.
"""
# ruff: noqa: N803 - constants of a kernel are in capitals; a constexpr branch is a statement
# pyright: basic, reportArgumentType=false, reportAssignmentType=false, reportRedeclaration=false
# pyright: reportIndexIssue=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# The body of a kernel is triton's language, whose functions carry no usable types.

import triton
import triton.language as tl

from nvila_kernels.triton.rounding import gelu_tanh, nearest_int8


@triton.jit
def store_row(value, feature, codes, scale, row, PADDED: tl.constexpr, ASM: tl.constexpr):
    """Write the codes of one row and its scale ``max|x| / 127`` (1 for a row of zeros)."""
    largest = tl.max(tl.abs(value), axis=0)
    largest = tl.where(largest == 0.0, 127.0, largest)
    tl.store(scale + row, tl.math.div_rn(largest, 127.0))
    code = nearest_int8(value * tl.math.div_rn(127.0, largest), ASM)
    tl.store(codes + row * PADDED + feature, code.to(tl.int8), mask=feature < PADDED)


@triton.jit
def quantize_rows(x, codes, scale, K, GELU: tl.constexpr, PADDED: tl.constexpr, ASM: tl.constexpr, BLOCK: tl.constexpr):
    """One scale a row, after GELU (tanh) if asked."""
    row = tl.program_id(0).to(tl.int64)
    feature = tl.arange(0, BLOCK)
    value = tl.load(x + row * K + feature, mask=feature < K, other=0.0).to(tl.float32)
    if GELU:
        value = gelu_tanh(value)
    store_row(value, feature, codes, scale, row, PADDED, ASM)


@triton.jit
def layer_norm_quantize(
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
def quantize_static(x, scale, codes, M, K, PADDED: tl.constexpr, ASM: tl.constexpr, BLOCK: tl.constexpr):
    """One scale for all, known beforehand: ``clamp(round(x * (1 / scale)))``."""
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = offset // PADDED
    feature = offset % PADDED
    value = tl.load(x + row * K + feature, mask=(row < M) & (feature < K), other=0.0).to(tl.float32)
    code = nearest_int8(value * tl.math.div_rn(1.0, tl.load(scale)), ASM)
    tl.store(codes + offset, code.to(tl.int8), mask=row < M)
