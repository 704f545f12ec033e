"""Eight bits on both sides: fbgemm's prepacked product, and oneDNN's on the codes as they are.

Both multiply integers, with one scale a token and one an output channel. A 4-bit weight becomes one of 8 bits, rounded
again to a scale for the whole row: twice the memory, and for many rows the fastest product there is.

fbgemm adds pairs of products in 16 bits where the processor has no instruction for sums in 32, and there saturates
with full 8-bit operands. Whether it does is found out with one small product; activations then get 7 bits.
"""

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

from nvila_kernels.cpu.dense import floats
from nvila_kernels.cpu.kernel import Codes, Kernel, Run
from nvila_kernels.cpu.rows import int8_rows, scaled_rows
from nvila_kernels.quantization import INT8_MAX, Int8Codes, quantize_int8

REDUCED = 63
"""Levels on either side of zero that keep pairs of products within 16 bits."""
ROWS_AT_ONCE = 4096


def int8_codes(codes: Codes) -> Int8Codes:
    """The same weight with one scale a row."""
    if isinstance(codes, Int8Codes):
        return codes
    made = quantize_int8(floats(codes))
    return Int8Codes(codes=made[0], scale=made[1])


def fbgemm_missing() -> str | None:
    if "fbgemm" in torch.backends.quantized.supported_engines:
        return None
    return "this build of torch has no fbgemm"


def prepacked(codes: Tensor) -> Any:
    """fbgemm's own form of int8 ``[n, k]``, all scales 1."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch moves its quantized tensors elsewhere; the product stays
        ones, zeros = torch.ones(len(codes), dtype=torch.float64), torch.zeros(len(codes), dtype=torch.int64)
        weight = torch._make_per_channel_quantized_tensor(codes, ones, zeros, 0)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        return torch.ops.quantized.linear_prepack(weight, None)


def fbgemm_product(x: Tensor, levels: int, packed: Any) -> Tensor:
    """Round ``x`` in ``-levels..levels`` to integers and multiply."""
    return torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(x, 1.0, levels + 1, packed)


@cache
def saturates() -> bool:
    """Whether fbgemm loses part of a sum of full 8-bit products on this machine."""
    weight = prepacked(torch.full((16, 64), INT8_MAX, dtype=torch.int8))
    exact = 64 * INT8_MAX**2
    return bool((fbgemm_product(torch.full((4, 64), float(INT8_MAX)), INT8_MAX, weight) < 0.99 * exact).any())


def pack_fbgemm(codes: Codes) -> Run:
    eight = int8_codes(codes)
    packed, scale, x_scale = prepacked(eight.codes.contiguous()), eight.scale.float(), eight.x_scale
    levels = REDUCED if saturates() else INT8_MAX

    def run(x: Tensor) -> Tensor:
        scaled, row_scale = scaled_rows(x, x_scale, levels)
        return fbgemm_product(scaled, levels, packed).mul_(row_scale).mul_(scale)

    return run


def pack_onednn(codes: Codes) -> Run:
    eight = int8_codes(codes)
    weight, scale, x_scale = eight.codes.contiguous(), eight.scale.float(), eight.x_scale

    def run(x: Tensor) -> Tensor:
        rows, row_scale = int8_rows(x, x_scale)
        product = torch._int_mm(rows, weight.T)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        return product.float().mul_(row_scale).mul_(scale)

    return run


def onednn_missing() -> str | None:
    return None if torch.backends.mkldnn.is_available() else "this build of torch has no oneDNN"


def size(n: int, k: int, group: int) -> float:
    return n * (k + 4.0)


FBGEMM4 = Kernel(name="fbgemm int8", bits=4, activations="int8", bytes=size, pack=pack_fbgemm, missing=fbgemm_missing)
ONEDNN4 = Kernel(name="oneDNN int8", bits=4, activations="int8", bytes=size, pack=pack_onednn, missing=onednn_missing)
FBGEMM8 = Kernel(name="fbgemm int8", bits=8, activations="int8", bytes=size, pack=pack_fbgemm, missing=fbgemm_missing)
ONEDNN8 = Kernel(name="oneDNN int8", bits=8, activations="int8", bytes=size, pack=pack_onednn, missing=onednn_missing)
