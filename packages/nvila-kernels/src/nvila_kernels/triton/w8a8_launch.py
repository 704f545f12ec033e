"""Start the int8 kernels."""
# pyright: basic, reportArgumentType=false, reportCallIssue=false
# A launch, kernel[grid](...), takes options that are no arguments of the function.

import torch
import triton
from torch import Tensor

from nvila_kernels.quantization import padded_features
from nvila_kernels.triton import rows
from nvila_kernels.triton.architecture import assembly
from nvila_kernels.triton.configurations import UNFUSED, Tile, row_options
from nvila_kernels.triton.product import byte_product
from nvila_kernels.triton.tuned import tile_for

WIDEST_ROW = 65536
"""Features that one program can hold in registers."""


def _row_block(features: int) -> int:
    if features > WIDEST_ROW:
        raise ValueError(
            f"a row of {features} features exceeds the {WIDEST_ROW} that one program holds: use the reference backend"
        )
    return triton.next_power_of_2(features)


def _empty_rows(x: Tensor) -> tuple[Tensor, Tensor, int]:
    padded = padded_features(x.shape[1])
    codes = x.new_empty((x.shape[0], padded), dtype=torch.int8)
    return codes, x.new_empty((x.shape[0],), dtype=torch.float32), padded


def _quantize(x: Tensor, gelu: bool) -> tuple[Tensor, Tensor]:
    codes, scale, padded = _empty_rows(x)
    if codes.numel():
        block = _row_block(padded)
        rows.quantize_rows[(x.shape[0],)](
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
        rows.layer_norm_quantize[(x.shape[0],)](
            x.contiguous(), weight, bias, codes, scale, x.shape[1], epsilon,
            PADDED=padded, ASM=assembly(), BLOCK=block, **row_options(block),
        )  # fmt: skip
    return codes, scale


def quantize_static(x: Tensor, scale: Tensor) -> Tensor:
    """One scale for all: int8 ``[m, padded k]``."""
    codes, _, padded = _empty_rows(x)
    if codes.numel():
        rows.quantize_static[(triton.cdiv(codes.numel(), 1024),)](
            x.contiguous(),
            scale,
            codes,
            x.shape[0],
            x.shape[1],
            PADDED=padded,
            ASM=assembly(),
            BLOCK=1024,
            **UNFUSED,
        )
    return codes


def product(
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
    """Fill ``out`` with the scaled product of two 8-bit matrices; see ``byte_product``."""
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
    return product(x, x_scale, weight, weight_scale, bias, out, tile, gelu=gelu)


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
    return product(x, x_scale, weight, weight_scale, bias, out, tile, gelu=gelu, out_scale=out_scale)
