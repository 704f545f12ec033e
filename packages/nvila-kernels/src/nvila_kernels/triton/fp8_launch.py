"""Start the float8 casts and products; before sm_89, which has neither, the reference runs."""
# pyright: basic, reportArgumentType=false, reportCallIssue=false
# A launch, kernel[grid](...), takes options that are no arguments of the function.

import torch
import triton
from torch import Tensor
from torch.nn import functional as F

from nvila_kernels import reference
from nvila_kernels.pack import BLOCK
from nvila_kernels.quantization import FP8_MAX, FP8_SMALLEST_SCALE
from nvila_kernels.triton import fp8
from nvila_kernels.triton.architecture import architecture
from nvila_kernels.triton.configurations import FP8, UNFUSED, row_options, tile_of
from nvila_kernels.triton.w8a8_launch import WIDEST_ROW, product

FIRST_ARCHITECTURE = 89
ELEMENTS = 1024


def _converts(x: Tensor) -> bool:
    return x.device.type != "cuda" or architecture(x.device) >= FIRST_ARCHITECTURE


def _cast(x: Tensor, scale: Tensor, dtype: torch.dtype, largest: Tensor | None) -> Tensor:
    codes = x.new_empty(x.shape, dtype=dtype)
    if codes.numel():
        fp8.cast[(triton.cdiv(codes.numel(), ELEMENTS),)](
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
        fp8.cast_rows[(x.shape[0],)](
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
        fp8.cast_transposed[grid](
            x.contiguous(), scale, codes, x.shape[0], x.shape[1], LIMIT=FP8_MAX[dtype], BLOCK=64, **UNFUSED
        )
    return codes


def amax(x: Tensor) -> Tensor:
    """``max|x|`` as float32 ``[1]``."""
    if x.numel() == 0:
        return x.new_zeros((1,), dtype=torch.float32)
    blocks = triton.cdiv(x.numel(), 4096)
    largest = x.new_empty((blocks,), dtype=torch.float32)
    fp8.block_amax[(blocks,)](x.contiguous(), largest, x.numel(), BLOCK=4096, **UNFUSED)
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
    return product(x.contiguous(), x_scale, weight.contiguous(), weight_scale, bias, out, tile)


def pad_codes(codes: Tensor) -> Tensor:
    """Zeros up to a multiple of 128 features; torch cannot pad float8 itself."""
    missing = -codes.shape[1] % BLOCK
    return F.pad(codes.view(torch.uint8), (0, missing)).view(codes.dtype)
