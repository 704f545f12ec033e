"""Eight bits on both sides: fbgemm's prepacked product, and oneDNN's on the codes as they are.

Both multiply integers, with one scale a token and one an output channel. A 4-bit weight becomes one of 8 bits, rounded
again to a scale for the whole row: twice the memory, and for many rows the fastest product there is.

fbgemm adds pairs of products in 16 bits where the processor has no instruction for sums in 32, and there saturates
with full 8-bit operands. Whether it does is found out with one small product. Activations then get as many levels as
the largest pair of weights leaves room for, from the smallest value of a token to its largest.

For weights of 8 bits there is a third candidate, good for many rows where a processor or a build of torch is slow with
integers: the codes become float32 for the length of a product.
"""

import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nvila_kernels.cpu.arena import Arena
from nvila_kernels.cpu.kernels.activations import int8_rows, scaled_rows, shifted_rows
from nvila_kernels.cpu.kernels.dense import float_weight
from nvila_kernels.cpu.kernels.kernel import Codes, Kernel, Run
from nvila_kernels.quantization import INT8_MAX, Int8Codes, quantize_int8

UINT8_MAX, INT16_MAX = 255, 32767
ROWS_AT_ONCE = 4096
"""Of an output head: in wider numbers a vocabulary takes gigabytes."""


def int8_codes(codes: Codes) -> Int8Codes:
    """The same weight with one scale a row."""
    if isinstance(codes, Int8Codes):
        return codes
    made = quantize_int8(float_weight(codes))
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


def fbgemm_product(x: Tensor, packed: Any, *, zero: int) -> Tensor:
    """Round ``x`` in ``-zero..255 - zero`` to integers and multiply."""
    return torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(x, 1.0, zero, packed)


@cache
def saturates() -> bool:
    """Whether fbgemm loses part of a sum of full 8-bit products on this machine."""
    weight = prepacked(torch.full((16, 64), INT8_MAX, dtype=torch.int8))
    exact = 64 * INT8_MAX**2
    found = fbgemm_product(torch.full((4, 64), float(INT8_MAX)), weight, zero=INT8_MAX + 1)
    return bool((found < 0.99 * exact).any())


def some_rows(codes: Tensor) -> Iterator[Tensor]:
    for start in range(0, len(codes), ROWS_AT_ONCE):
        yield codes[start : start + ROWS_AT_ONCE]


def largest_pair(codes: Tensor) -> int:
    """The most that two neighbouring weights of one sign add up to, over int8 ``[n, k]``."""
    most = 1
    for rows in some_rows(codes):
        even: Tensor = F.pad(rows.short(), (0, rows.shape[1] % 2))
        for signed in (even, torch.neg(even)):
            most = max(most, int((signed[:, 0::2].relu() + signed[:, 1::2].relu()).max()))
    return most


def row_sums(codes: Tensor) -> Tensor:
    """float32 ``[n]`` of int8 ``[n, k]``."""
    return torch.cat([rows.sum(1, dtype=torch.float32) for rows in some_rows(codes)])


def pack_fbgemm(codes: Codes, arena: Arena) -> Run:
    eight = int8_codes(codes)
    weight = eight.codes.contiguous()
    packed, scale, x_scale = prepacked(weight), eight.scale.float(), eight.x_scale
    if not saturates():

        def run(x: Tensor) -> Tensor:
            scaled, row_scale = scaled_rows(x, x_scale)
            return fbgemm_product(scaled, packed, zero=INT8_MAX + 1).mul_(row_scale).mul_(scale)

        return run
    top = min(UINT8_MAX, INT16_MAX // largest_pair(weight))
    sums = row_sums(weight)

    def run_saturating(x: Tensor) -> Tensor:
        shifted, row_scale, lowest = shifted_rows(x, x_scale, top)
        product = fbgemm_product(shifted, packed, zero=0)
        return product.addcmul_(lowest, sums).mul_(row_scale).mul_(scale)

    return run_saturating


def pack_floats(codes: Codes, arena: Arena) -> Run:
    eight = int8_codes(codes)
    weight, scale, x_scale = eight.codes.contiguous(), eight.scale.float(), eight.x_scale

    def run(x: Tensor) -> Tensor:
        scaled, row_scale = scaled_rows(x, x_scale)
        return F.linear(scaled.round_(), weight.float()).mul_(row_scale).mul_(scale)

    return run


def pack_onednn(codes: Codes, arena: Arena) -> Run:
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
FLOATS8 = Kernel(name="float32 of int8 codes", bits=8, activations="int8", bytes=size, pack=pack_floats)
