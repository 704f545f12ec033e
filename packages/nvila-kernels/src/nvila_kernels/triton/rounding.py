"""Rounding to int8, and GELU, inside a kernel."""
# ruff: noqa: N803 - constants of a kernel are in capitals; a constexpr branch is a statement
# pyright: basic, reportArgumentType=false, reportAssignmentType=false, reportRedeclaration=false
# pyright: reportIndexIssue=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false
# The body of a kernel is triton's language, whose functions carry no usable types.

import triton
import triton.language as tl


@triton.jit
def nearest_int8(value, ASM: tl.constexpr):
    """Round float32 to the nearest integer, ties to even, and clamp it to -127..127; the result is int32.

    Without assembly, adding and taking off 1.5 * 2^23 leaves exactly the rounded integer.
    """
    value = tl.clamp(value, -127.0, 127.0)
    if ASM:
        code = tl.inline_asm_elementwise(
            "cvt.rni.s32.f32 $0, $1;", "=r,r", [value], dtype=tl.int32, is_pure=True, pack=1
        )
    else:
        code = ((value + 12582912.0) - 12582912.0).to(tl.int32)
    return code


@triton.jit
def gelu_tanh(value):
    """``x / (1 + exp(-2 u))`` with ``u = sqrt(2 / pi) (x + 0.044715 x^3)``: GELU with tanh, written as a sigmoid."""
    inner = 0.7978845608028654 * (value + 0.044715 * value * value * value)
    return value / (1.0 + tl.exp(-2.0 * inner))
