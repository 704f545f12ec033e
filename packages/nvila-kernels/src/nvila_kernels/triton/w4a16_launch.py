"""Start the 4-bit kernels: pad, choose a tile, split K, sum."""
# pyright: basic, reportArgumentType=false, reportCallIssue=false
# A launch, kernel[grid](...), takes options that are no arguments of the function.

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from nvila_kernels.pack import BLOCK
from nvila_kernels.triton import w4a16
from nvila_kernels.triton.architecture import architecture, assembly
from nvila_kernels.triton.configurations import DECODE_ROWS, UNFUSED, Tile, splits
from nvila_kernels.triton.tuned import tile_for

TRITON_TYPE = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


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
    return int4_product(x, packed, scale_zero, bias, group_size, scale_dtype, half_accumulate, tile)


def int4_product(
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
    constants = {
        "BIAS": bias is not None,
        "GROUP": group_size,
        "SCALE": TRITON_TYPE[scale_dtype],
        "HALF": half_accumulate,
        "ASM": assembly(),
    }
    shift = x if bias is None else bias  # never read without a bias
    constants |= {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "NARROW": columns < tile.block_n}
    tiles_n = triton.cdiv(columns, tile.block_n)
    if rows > DECODE_ROWS:
        w4a16.prefill[(tiles_n, triton.cdiv(rows, tile.block_m))](
            x, packed, scale_zero, shift, out, rows, columns, blocks, x.stride(0), **constants,
            **tile.options(fusion=True, nvidia=assembly()),
        )  # fmt: skip
        return out
    split = tile.split or splits(architecture(x.device), tiles_n, blocks)
    target = out if split == 1 else x.new_empty((split, rows, columns), dtype=torch.float32)
    w4a16.decode[(tiles_n, split, triton.cdiv(rows, tile.block_m))](
        x, packed, scale_zero, shift, target, rows, columns, blocks, x.stride(0), **constants, SPLIT=split,
        **tile.options(fusion=True, nvidia=assembly()),
    )  # fmt: skip
    if split > 1:
        w4a16.sum_splits[(triton.cdiv(out.numel(), 1024),)](
            target, shift, out, rows, columns, BIAS=bias is not None, SPLIT=split, BLOCK=1024, **UNFUSED
        )
    return out
