"""4-bit weights times 16-bit activations: a decode kernel, a prefill kernel and the sum over split K.

All compute the transpose ``out.T = weight @ x.T``: the weight is the first operand of ``tl.dot``, so that dequantized
weights go from registers straight into the tensor cores and the batch side of a tile may be as narrow as 8 rows.

decode   multiplies the float32 sum of a group with its scale: the weights stay exact integers
prefill  multiplies each weight with its scale before the product: fewer registers at large tiles, but 16-bit weights

No mask burdens the loop: the last tile of columns moves left until it ends with the weight, and computes a few columns
twice; rows beyond the edge, and columns of a weight that is narrower than one tile (``NARROW``), wrap around to valid
addresses and are not stored. Of a tile that never wraps, all rows lie at fixed distances: one pointer serves them.
K is a multiple of 128 here; the launcher pads the activations with zeros where it is not.
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

from nvila_kernels.pack import BLOCK
from nvila_kernels.triton.nibbles import centred, scale_of
from nvila_kernels.triton.tiles import DECODE_ROWS, UNFUSED, Tile, architecture, assembly, splits
from nvila_kernels.triton.timed_tiles import tile_for

TRITON_TYPE = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


@triton.jit
def partial(weight, x, total, HALF: tl.constexpr):
    """One product of 32 features added to the sum of the group."""
    if HALF:
        total = tl.dot(weight, x, total, out_dtype=tl.float16)
    else:
        total = tl.dot(weight, x, total)
    return total


@triton.jit
def columns(N, NARROW: tl.constexpr, BLOCK_N: tl.constexpr):
    """Where this program's tile of columns begins, and the columns within it."""
    first = tl.program_id(0) * BLOCK_N
    within = tl.arange(0, BLOCK_N)
    if NARROW:
        within = within % N
    else:
        first = tl.minimum(first, N - BLOCK_N)
    return first, within


@triton.jit
def decode(
    x,
    packed,
    scale_zero,
    bias,
    out,
    M,
    N,
    BLOCKS,
    stride_x,
    BIAS: tl.constexpr,
    GROUP: tl.constexpr,
    SCALE: tl.constexpr,
    HALF: tl.constexpr,
    ASM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLIT: tl.constexpr,
    NARROW: tl.constexpr,
):
    """``out[split, m, n]`` (float32) receives the sums of each split of K; without a split, the finished result."""
    FLOAT: tl.constexpr = x.dtype.element_ty
    TOTAL: tl.constexpr = tl.float16 if HALF else tl.float32
    split = tl.program_id(1)
    first, within = columns(N, NARROW, BLOCK_N)
    m = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M)
    lane = tl.arange(0, 32)
    column = first + within
    n = first + tl.arange(0, BLOCK_N)
    per_split = (BLOCKS + SPLIT - 1) // SPLIT
    begin = split * per_split
    end = tl.minimum(begin + per_split, BLOCKS)
    words_at = packed + (begin.to(tl.int64) * N + first) * 32 + (within[:, None] * 32 + lane[None, :])
    x_at = x + (m % M)[None, :] * stride_x + begin * 128 + lane[:, None]
    if GROUP == 0:
        scales_at = scale_zero + column
        scale_word = tl.load(scales_at)
    else:
        scales_at = scale_zero + begin * (128 // GROUP) * N + column
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for _ in range(begin, end):
        words = tl.load(words_at)
        x0 = tl.load(x_at)
        x1 = tl.load(x_at + 32)
        x2 = tl.load(x_at + 64)
        x3 = tl.load(x_at + 96)
        zeros = tl.zeros((BLOCK_N, BLOCK_M), TOTAL)
        if GROUP == 0 or GROUP == 128:
            if GROUP == 128:
                scale_word = tl.load(scales_at)
            w0, w1, w2, w3 = centred(words, scale_word, FLOAT, ASM)
            group = partial(w0, x0, zeros, HALF)
            group = partial(w1, x1, group, HALF)
            group = partial(w2, x2, group, HALF)
            group = partial(w3, x3, group, HALF)
            if GROUP == 0:
                total += group
            else:
                total += group * scale_of(scale_word, SCALE)[:, None]
        elif GROUP == 64:
            left = tl.load(scales_at)
            right = tl.load(scales_at + N)
            w0, w1, _c, _d = centred(words, left, FLOAT, ASM)
            _a, _b, w2, w3 = centred(words, right, FLOAT, ASM)
            total += partial(w1, x1, partial(w0, x0, zeros, HALF), HALF) * scale_of(left, SCALE)[:, None]
            total += partial(w3, x3, partial(w2, x2, zeros, HALF), HALF) * scale_of(right, SCALE)[:, None]
        else:
            s0 = tl.load(scales_at)
            s1 = tl.load(scales_at + N)
            s2 = tl.load(scales_at + 2 * N)
            s3 = tl.load(scales_at + 3 * N)
            w0, _b, _c, _d = centred(words, s0, FLOAT, ASM)
            _a, w1, _c, _d = centred(words, s1, FLOAT, ASM)
            _a, _b, w2, _d = centred(words, s2, FLOAT, ASM)
            _a, _b, _c, w3 = centred(words, s3, FLOAT, ASM)
            total += partial(w0, x0, zeros, HALF) * scale_of(s0, SCALE)[:, None]
            total += partial(w1, x1, zeros, HALF) * scale_of(s1, SCALE)[:, None]
            total += partial(w2, x2, zeros, HALF) * scale_of(s2, SCALE)[:, None]
            total += partial(w3, x3, zeros, HALF) * scale_of(s3, SCALE)[:, None]
        words_at += N.to(tl.int64) * 32
        x_at += 128
        if GROUP != 0:
            scales_at += (128 // GROUP) * N
    if GROUP == 0:
        total = total * scale_of(scale_word, SCALE)[:, None]
    inside = (m[None, :] < M) & (n[:, None] < N)
    if SPLIT == 1 and BIAS:
        total += tl.load(bias + column).to(tl.float32)[:, None]
    out_at = out + split.to(tl.int64) * M * N + m[None, :].to(tl.int64) * N + n[:, None]
    tl.store(out_at, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def sum_splits(workspace, bias, out, M, N, BIAS: tl.constexpr, SPLIT: tl.constexpr, BLOCK: tl.constexpr):
    """``out[m, n] = sum over splits of workspace[split, m, n] + bias[n]``, always in the same order."""
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = offset < M * N
    total = tl.load(workspace + offset, mask=inside, other=0.0)
    for split in tl.static_range(1, SPLIT):
        total += tl.load(workspace + split * M * N + offset, mask=inside, other=0.0)
    if BIAS:
        total += tl.load(bias + offset % N, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + offset, total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def scaled(words, scale_word, FLOAT: tl.constexpr, SCALE: tl.constexpr, ASM: tl.constexpr):
    """``scale * (code - zero)`` rounded to 16 bits, four ``[n, 32]``."""
    a, b, c, d = centred(words, scale_word, FLOAT, ASM)
    scale = scale_of(scale_word, SCALE).to(FLOAT)[:, None]
    return a * scale, b * scale, c * scale, d * scale


@triton.jit
def prefill(
    x,
    packed,
    scale_zero,
    bias,
    out,
    M,
    N,
    BLOCKS,
    stride_x,
    BIAS: tl.constexpr,
    GROUP: tl.constexpr,
    SCALE: tl.constexpr,
    HALF: tl.constexpr,
    ASM: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    NARROW: tl.constexpr,
):
    """``out[m, n]``, finished: one program a tile, all of K."""
    FLOAT: tl.constexpr = x.dtype.element_ty
    TOTAL: tl.constexpr = tl.float16 if HALF else tl.float32
    first, within = columns(N, NARROW, BLOCK_N)
    m = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    lane = tl.arange(0, 32)
    column = first + within
    n = first + tl.arange(0, BLOCK_N)
    words_at = packed + first * 32 + (within[:, None] * 32 + lane[None, :])
    x_at = x + (m % M).to(tl.int64)[None, :] * stride_x + lane[:, None]
    scales_at = scale_zero + column
    scale_word = tl.load(scales_at)
    total = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for _ in range(BLOCKS):
        words = tl.load(words_at)
        x0 = tl.load(x_at)
        x1 = tl.load(x_at + 32)
        x2 = tl.load(x_at + 64)
        x3 = tl.load(x_at + 96)
        if GROUP == 128:
            scale_word = tl.load(scales_at)
        if GROUP == 0 or GROUP == 128:
            w0, w1, w2, w3 = scaled(words, scale_word, FLOAT, SCALE, ASM)
        elif GROUP == 64:
            w0, w1, _c, _d = scaled(words, tl.load(scales_at), FLOAT, SCALE, ASM)
            _a, _b, w2, w3 = scaled(words, tl.load(scales_at + N), FLOAT, SCALE, ASM)
        else:
            w0, _b, _c, _d = scaled(words, tl.load(scales_at), FLOAT, SCALE, ASM)
            _a, w1, _c, _d = scaled(words, tl.load(scales_at + N), FLOAT, SCALE, ASM)
            _a, _b, w2, _d = scaled(words, tl.load(scales_at + 2 * N), FLOAT, SCALE, ASM)
            _a, _b, _c, w3 = scaled(words, tl.load(scales_at + 3 * N), FLOAT, SCALE, ASM)
        if HALF:
            group = partial(w0, x0, tl.zeros((BLOCK_N, BLOCK_M), TOTAL), HALF)
            group = partial(w1, x1, group, HALF)
            group = partial(w2, x2, group, HALF)
            total += partial(w3, x3, group, HALF)
        else:
            total = partial(w0, x0, total, HALF)
            total = partial(w1, x1, total, HALF)
            total = partial(w2, x2, total, HALF)
            total = partial(w3, x3, total, HALF)
        words_at += N.to(tl.int64) * 32
        x_at += 128
        if GROUP != 0:
            scales_at += (128 // GROUP) * N
    if BIAS:
        total += tl.load(bias + column).to(tl.float32)[:, None]
    out_at = out + m[None, :].to(tl.int64) * N + n[:, None]
    tl.store(out_at, total.to(out.dtype.element_ty), mask=(m[None, :] < M) & (n[:, None] < N))


def w4a16_linear(
    x: Tensor,
    packed: Tensor,
    scale_zero: Tensor,
    bias: Tensor | None,
    group_size: int,
    scale_dtype: torch.dtype,
    half_accumulate: bool,
) -> Tensor:
    """``x @ (scale * (codes - zero)).T + bias``, float16 or bfloat16 ``[m, k] -> [m, n]``.

    Raises: ValueError for other activations.
    """
    if x.dtype not in TRITON_TYPE:
        raise ValueError(f"activations are {x.dtype}, the kernels take float16 or bfloat16: cast them")
    tile = tile_for("w4a16", x.device, x.shape[0], x.shape[1], packed.shape[1])
    return multiply_int4(x, packed, scale_zero, bias, group_size, scale_dtype, half_accumulate, tile)


def multiply_int4(
    x: Tensor,
    packed: Tensor,
    scale_zero: Tensor,
    bias: Tensor | None,
    group_size: int,
    scale_dtype: torch.dtype,
    half_accumulate: bool,
    tile: Tile,
) -> Tensor:
    """:func:`w4a16_linear` in tiles of one's choice."""
    rows, columns = x.shape[0], packed.shape[1]
    out = x.new_empty((rows, columns))
    if out.numel() == 0:
        return out
    blocks = packed.shape[0]
    x = F.pad(x, (0, blocks * BLOCK - x.shape[1])) if x.shape[1] % BLOCK else x.contiguous()
    shift = x if bias is None else bias  # never read without a bias
    constants = {"BIAS": bias is not None, "GROUP": group_size, "SCALE": TRITON_TYPE[scale_dtype], "ASM": assembly()}
    constants |= {"HALF": half_accumulate, "NARROW": columns < tile.block_n}
    constants |= {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n}
    tiles_n = triton.cdiv(columns, tile.block_n)
    if rows > DECODE_ROWS:
        prefill[(tiles_n, triton.cdiv(rows, tile.block_m))](
            x, packed, scale_zero, shift, out, rows, columns, blocks, x.stride(0), **constants,
            **tile.options(fusion=True, nvidia=assembly()),
        )  # fmt: skip
        return out
    split = tile.split or splits(architecture(x.device), tiles_n, blocks)
    target = out if split == 1 else x.new_empty((split, rows, columns), dtype=torch.float32)
    decode[(tiles_n, split, triton.cdiv(rows, tile.block_m))](
        x, packed, scale_zero, shift, target, rows, columns, blocks, x.stride(0), **constants, SPLIT=split,
        **tile.options(fusion=True, nvidia=assembly()),
    )  # fmt: skip
    if split > 1:
        sum_splits[(triton.cdiv(out.numel(), 1024),)](
            target, shift, out, rows, columns, BIAS=bias is not None, SPLIT=split, BLOCK=1024, **UNFUSED
        )
    return out
