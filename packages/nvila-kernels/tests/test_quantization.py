"""Rounding to nearest: hand-computed values, error bounds, and refusals."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nvila_kernels.quantization import (
    Int4Codes,
    dequantize_int4,
    quantize_int4,
    quantize_int8,
    quantize_int8_static,
)


def test_a_group_by_hand() -> None:
    weight = torch.tensor([[-3.0, 0.0, 4.5, 12.0]])
    quantized = quantize_int4(weight, group_size=4)
    assert quantized.scale.item() == 1.0
    assert quantized.zero.item() == 3
    assert quantized.codes.tolist() == [[0, 3, 7, 15]]  # 4.5 rounds to the even 4
    assert dequantize_int4(quantized).tolist() == [[-3.0, 0.0, 4.0, 12.0]]


def test_symmetric_by_hand() -> None:
    quantized = quantize_int4(torch.tensor([[-7.0, 3.0, 0.4, 7.0]]), group_size=4, symmetric=True)
    assert quantized.codes.tolist() == [[1, 11, 8, 15]]
    assert quantized.zero.item() == 8


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 5),
    k=st.integers(1, 300),
    group=st.sampled_from([0, 32, 64, 128]),
    symmetric=st.booleans(),
    dtype=st.sampled_from([torch.float16, torch.bfloat16]),
    magnitude=st.sampled_from([1e-3, 1.0, 300.0]),
)
def test_the_error_is_below_one_step(
    n: int, k: int, group: int, symmetric: bool, dtype: torch.dtype, magnitude: float
) -> None:
    weight = torch.randn(n, k, generator=torch.Generator().manual_seed(k)) * magnitude
    quantized = quantize_int4(weight, group_size=group, symmetric=symmetric, dtype=dtype)
    step = quantized.scale.float().repeat_interleave(quantized.group_size, 1)[:, :k]
    assert bool(((dequantize_int4(quantized) - weight).abs() <= 1.07 * step).all())


def test_a_group_of_zeros_stays_zero() -> None:
    assert dequantize_int4(quantize_int4(torch.zeros(2, 64), group_size=32)).abs().max() == 0


def test_int8_by_hand() -> None:
    codes, scale = quantize_int8(torch.tensor([[127.0, -63.5, 1.4, 0.0], [0.0, 0.0, 0.0, 0.0]]), padded=6)
    assert codes.tolist() == [[127, -64, 1, 0, 0, 0], [0] * 6]
    assert scale.tolist() == [1.0, 1.0]
    static = quantize_int8_static(torch.tensor([[500.0, -500.0, 1.0]]), torch.tensor([2.0]))
    assert static.tolist() == [[127, -127, 0]]


def test_refusals() -> None:
    for wrong in ("nan", "inf", "-inf"):
        weight = torch.ones(3, 70)
        weight[1, 65] = float(wrong)
        for symmetric in (False, True):
            with pytest.raises(ValueError, match="not finite"):
                quantize_int4(weight, group_size=32, symmetric=symmetric)
    with pytest.raises(ValueError, match=r"scale has shape \(2, 3\), codes 2 x 64 in groups of 32 need \(2, 2\)"):
        Int4Codes(
            codes=torch.zeros(2, 64, dtype=torch.uint8),
            scale=torch.ones(2, 3),
            zero=torch.zeros(2, 2, dtype=torch.uint8),
            group_size=32,
        )


def test_int8_codes_divide_once() -> None:
    """``127 * (1 / largest)`` rounds twice, and moves codes that lie at a tie."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(4000, 64, generator=generator).bfloat16().float()
    largest = values.abs().amax(-1, keepdim=True)
    factor = (torch.tensor(127.0, dtype=torch.float64) / largest.double()).float()
    codes, _ = quantize_int8(values)
    assert torch.equal(codes, (values * factor).round().to(torch.int8))
