"""Products of 8-bit operands, int8 or float8, with their epilogue: scales, bias, GELU (tanh), and quantization for the
layer that follows.

``out = gelu(sum_k x[m, k] weight[n, k] * x_scale[m] * weight_scale[n] + bias[n])``

int8 sums are int32 and exact. float8 sums are float32; Hopper's tensor cores keep fewer bits than that, so the sum
leaves them after every ``BLOCK_K`` features.

Before sm_90 the compiler carries 8-bit operands across the pipelined loop byte by byte and spills. Two products that
share their first operand, each with half of the columns, avoid it: ``HALVES``.

K is a multiple of ``BLOCK_K`` here: weights and activations are stored padded with zeros to a multiple of 128 features.
"""
# ruff: noqa: N803, SIM108 - constants of a kernel are in capitals; a constexpr branch is a statement
# pyright: basic, reportArgumentType=false, reportAssignmentType=false, reportRedeclaration=false
# pyright: reportIndexIssue=false, reportGeneralTypeIssues=false, reportAttributeAccessIssue=false, reportCallIssue=false
# The body of a kernel is triton's language, whose functions carry no usable types; a launch, kernel[grid](...), takes
# options that are no arguments of the function.

import triton
import triton.language as tl
from torch import Tensor

from nvila_kernels.triton.rounding import gelu_tanh, nearest_int8
from nvila_kernels.triton.tiles import Tile, assembly


@triton.jit
def finish(
    total,
    m,
    n,
    x_scale,
    weight_scale,
    bias,
    out,
    out_scale,
    M,
    N,
    stride_out,
    PER_TOKEN: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    BIAS: tl.constexpr,
    GELU: tl.constexpr,
    REQUANTIZE: tl.constexpr,
    ASM: tl.constexpr,
):
    """Scale, shift, activate and store one tile of sums."""
    result = total.to(tl.float32)
    if PER_TOKEN:
        result = result * tl.load(x_scale + m, mask=m < M, other=0.0)[:, None]
    else:
        result = result * tl.load(x_scale)
    if PER_CHANNEL:
        result = result * tl.load(weight_scale + n, mask=n < N, other=0.0)[None, :]
    else:
        result = result * tl.load(weight_scale)
    if BIAS:
        result = result + tl.load(bias + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    if GELU:
        result = gelu_tanh(result)
    out_at = out + m[:, None].to(tl.int64) * stride_out + n[None, :]
    if REQUANTIZE:
        codes = nearest_int8(result * tl.math.div_rn(1.0, tl.load(out_scale)), ASM)
        # Columns up to the padded width are written too: the next product reads them, and they must be zero.
        codes = tl.where(n[None, :] < N, codes, 0).to(tl.int8)
        tl.store(out_at, codes, mask=(m[:, None] < M) & (n[None, :] < stride_out))
    else:
        tl.store(out_at, result.to(out.dtype.element_ty), mask=(m[:, None] < M) & (n[None, :] < N))


@triton.jit
def byte_product(
    x,
    weight,
    x_scale,
    weight_scale,
    bias,
    out,
    out_scale,
    M,
    N,
    K,
    stride_out,
    PER_TOKEN: tl.constexpr,
    PER_CHANNEL: tl.constexpr,
    BIAS: tl.constexpr,
    GELU: tl.constexpr,
    REQUANTIZE: tl.constexpr,
    ASM: tl.constexpr,
    HALVES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
):
    """``x [m, k]`` times ``weight [n, k]``, both of 8 bits with K contiguous.

    Tiles are visited in columns of ``GROUP_M`` rows, so that those that run together share weights in the L2 cache.
    """
    if x.dtype.element_ty == tl.int8:
        TOTAL: tl.constexpr = tl.int32
        TOGETHER: tl.constexpr = None
    else:
        TOTAL: tl.constexpr = tl.float32
        TOGETHER: tl.constexpr = BLOCK_K
    tiles_m = tl.cdiv(M, BLOCK_M)
    tiles_n = tl.cdiv(N, BLOCK_N)
    tile = tl.program_id(0)
    first = tile // (GROUP_M * tiles_n) * GROUP_M
    height = tl.minimum(tiles_m - first, GROUP_M)
    within = tile % (GROUP_M * tiles_n)
    m = (first + within % height) * BLOCK_M + tl.arange(0, BLOCK_M)
    feature = tl.arange(0, BLOCK_K)
    x_at = x + (m % M).to(tl.int64)[:, None] * K + feature[None, :]
    WIDTH: tl.constexpr = BLOCK_N // 2 if HALVES else BLOCK_N
    n = within // height * BLOCK_N + tl.arange(0, WIDTH)
    weight_at = weight + (n % N).to(tl.int64)[None, :] * K + feature[:, None]
    total = tl.zeros((BLOCK_M, WIDTH), TOTAL)
    if HALVES:
        other = n + WIDTH
        other_at = weight + (other % N).to(tl.int64)[None, :] * K + feature[:, None]
        right = tl.zeros((BLOCK_M, WIDTH), TOTAL)
        for _ in range(0, K, BLOCK_K):
            tokens = tl.load(x_at)
            total = tl.dot(tokens, tl.load(weight_at), total, out_dtype=TOTAL, max_num_imprecise_acc=TOGETHER)
            right = tl.dot(tokens, tl.load(other_at), right, out_dtype=TOTAL, max_num_imprecise_acc=TOGETHER)
            x_at += BLOCK_K
            weight_at += BLOCK_K
            other_at += BLOCK_K
        finish(right, m, other, x_scale, weight_scale, bias, out, out_scale, M, N, stride_out,
               PER_TOKEN, PER_CHANNEL, BIAS, GELU, REQUANTIZE, ASM)  # fmt: skip
    else:
        for _ in range(0, K, BLOCK_K):
            tokens = tl.load(x_at)
            total = tl.dot(tokens, tl.load(weight_at), total, out_dtype=TOTAL, max_num_imprecise_acc=TOGETHER)
            x_at += BLOCK_K
            weight_at += BLOCK_K
    finish(total, m, n, x_scale, weight_scale, bias, out, out_scale, M, N, stride_out,
           PER_TOKEN, PER_CHANNEL, BIAS, GELU, REQUANTIZE, ASM)  # fmt: skip


def multiply_bytes(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    out: Tensor,
    tile: Tile,
    *,
    gelu: bool = False,
    out_scale: Tensor | None = None,
) -> Tensor:
    """Fill ``out`` with the scaled product of two 8-bit matrices."""
    if out.numel() == 0:
        return out
    # Tiles are multiples of 128 wide, so that those over the columns cover a requantized result's padding as well.
    grid = (triton.cdiv(x.shape[0], tile.block_m) * triton.cdiv(weight.shape[0], tile.block_n),)
    byte_product[grid](
        x, weight, x_scale, weight_scale, x_scale if bias is None else bias, out,
        x_scale if out_scale is None else out_scale, x.shape[0], weight.shape[0], x.shape[1], out.shape[1],
        PER_TOKEN=x_scale.numel() > 1 or x.shape[0] == 1,
        PER_CHANNEL=weight_scale.numel() > 1 or weight.shape[0] == 1,
        BIAS=bias is not None, GELU=gelu, REQUANTIZE=out_scale is not None, ASM=assembly(), HALVES=tile.halves,
        BLOCK_M=tile.block_m, BLOCK_N=tile.block_n, BLOCK_K=tile.block_k, GROUP_M=8,
        **tile.options(fusion=False, nvidia=assembly()),
    )  # fmt: skip
    return out
