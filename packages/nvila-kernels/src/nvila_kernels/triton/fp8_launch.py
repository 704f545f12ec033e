"""Start the float8 casts; before sm_89, which cannot convert, the reference casts."""
# pyright: basic, reportArgumentType=false, reportCallIssue=false
# A launch, kernel[grid](...), takes options that are no arguments of the function.

import torch
import triton
from torch import Tensor

from nvila_kernels import reference
from nvila_kernels.quantization import FP8_MAX
from nvila_kernels.triton import fp8
from nvila_kernels.triton.architecture import architecture
from nvila_kernels.triton.w8a8_launch import WIDEST_ROW

FIRST_ARCHITECTURE = 89
ELEMENTS = 1024


def _converts(x: Tensor) -> bool:
    return x.device.type != "cuda" or architecture(x.device) >= FIRST_ARCHITECTURE


def cast_fp8(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """``clamp(x * (1 / scale))``; scale ``[1]`` for all or ``[m]``, one a row."""
    if not _converts(x):
        return reference.cast_fp8(x, scale, dtype)
    codes = x.new_empty(x.shape, dtype=dtype)
    if codes.numel():
        fp8.cast[(triton.cdiv(codes.numel(), ELEMENTS),)](
            x.contiguous(), scale, codes, x.shape[0], x.shape[1],
            LIMIT=FP8_MAX[dtype], BY_ROW=scale.numel() > 1, BLOCK=ELEMENTS,
        )  # fmt: skip
    return codes


def cast_fp8_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Each row scaled by its own largest value: codes ``[m, k]``, float32 scales ``[m]``."""
    if not _converts(x) or x.shape[1] > WIDEST_ROW:
        return reference.cast_fp8_rows(x, dtype)
    codes = x.new_empty(x.shape, dtype=dtype)
    scale = x.new_empty((x.shape[0],), dtype=torch.float32)
    if codes.numel():
        block = triton.next_power_of_2(x.shape[1])
        fp8.cast_rows[(x.shape[0],)](
            x.contiguous(), codes, scale, x.shape[1],
            LIMIT=FP8_MAX[dtype], BLOCK=block, num_warps=min(max(block // 512, 1), 16),
        )  # fmt: skip
    return codes, scale


def cast_fp8_transposed(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """:func:`cast_fp8` with one scale for all, written as a contiguous ``[k, m]``."""
    if not _converts(x):
        return reference.cast_fp8_transposed(x, scale, dtype)
    codes = x.new_empty((x.shape[1], x.shape[0]), dtype=dtype)
    if codes.numel():
        grid = (triton.cdiv(x.shape[0], 64), triton.cdiv(x.shape[1], 64))
        fp8.cast_transposed[grid](x.contiguous(), scale, codes, x.shape[0], x.shape[1], LIMIT=FP8_MAX[dtype], BLOCK=64)
    return codes


def amax(x: Tensor) -> Tensor:
    """``max|x|`` as float32 ``[1]``."""
    if x.numel() == 0:
        return x.new_zeros((1,), dtype=torch.float32)
    blocks = triton.cdiv(x.numel(), 4096)
    largest = x.new_empty((blocks,), dtype=torch.float32)
    fp8.block_amax[(blocks,)](x.contiguous(), largest, x.numel(), BLOCK=4096)
    return largest.amax().reshape(1)
