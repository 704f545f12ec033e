"""The 4-bit kernels: dequantization bit for bit, products against float64, ragged shapes."""

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from nvila_kernels import Int4Linear, use_backend, w4a16_linear
from nvila_kernels.quantization import Int4Codes, dequantize_int4, quantize_int4
from nvila_kernels.triton import w4a16
from nvila_kernels.triton.nibbles import centred

FLOATS = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
ROWS = 2048


@triton.jit
def centred_kernel(words, out, zero, FLOAT: tl.constexpr, ASM: tl.constexpr, ROWS: tl.constexpr):  # noqa: N803
    row = tl.arange(0, ROWS)[:, None]
    lane = tl.arange(0, 32)[None, :]
    at = row * 32 + lane
    scale_word = tl.full((ROWS,), 0x6400, tl.int32) | zero
    first, second, third, fourth = centred(tl.load(words + at), scale_word, FLOAT, ASM)
    tl.store(out + at, first)
    tl.store(out + ROWS * 32 + at, second)
    tl.store(out + 2 * ROWS * 32 + at, third)
    tl.store(out + 3 * ROWS * 32 + at, fourth)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("assembly", [False, True], ids=["twin", "assembly"])
def check_dequantization_of_every_word(dtype: torch.dtype, assembly: bool) -> None:
    words = torch.arange(65536, dtype=torch.int32)
    packed = words.to(torch.int16)
    for zero in range(17):
        out = torch.empty(4, 65536, dtype=dtype)
        centred_kernel[(1,)](packed, out, zero, FLOAT=FLOATS[dtype], ASM=assembly, ROWS=ROWS)
        expected = torch.stack([((words >> 4 * j) & 15) - zero for j in range(4)]).to(dtype)
        assert torch.equal(out, expected), f"zero point {zero}"


def layer_of(n: int, k: int, group: int, scale_dtype: torch.dtype, generator: torch.Generator) -> Int4Linear:
    weight = torch.randn(n, k, generator=generator) / k**0.5
    return Int4Linear.from_codes(
        quantize_int4(weight, group_size=group, dtype=scale_dtype), torch.randn(n, generator=generator)
    )


def oracle(layer: Int4Linear, x: torch.Tensor, rounded: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The product in float64, and the sum of its absolute terms, to which an error is relative."""
    weight = dequantize_int4(layer.codes(), x.dtype if rounded else torch.float32).double()
    assert layer.bias is not None
    return x.double() @ weight.T + layer.bias.double(), x.double().abs() @ weight.abs().T + layer.bias.abs()


SHAPES = {
    "n": st.integers(1, 150) | st.sampled_from([128, 256]),
    "k": st.integers(1, 300) | st.sampled_from([128, 1024]),
    "group": st.sampled_from([0, 32, 64, 128]),
    "dtype": st.sampled_from(list(FLOATS)),
    "scale_dtype": st.sampled_from(list(FLOATS)),
    "seed": st.integers(0, 1 << 16),
}


@settings(max_examples=140, deadline=None)
@given(m=st.integers(1, 16), half=st.booleans(), **SHAPES)
def check_decode(
    m: int, half: bool, n: int, k: int, group: int, dtype: torch.dtype, scale_dtype: torch.dtype, seed: int
) -> None:
    compare(m, n, k, group, dtype, scale_dtype, seed, half)


@settings(max_examples=90, deadline=None)
@given(m=st.integers(17, 70), half=st.booleans(), **SHAPES)
def check_prefill(
    m: int, half: bool, n: int, k: int, group: int, dtype: torch.dtype, scale_dtype: torch.dtype, seed: int
) -> None:
    compare(m, n, k, group, dtype, scale_dtype, seed, half)


def compare(
    m: int, n: int, k: int, group: int, dtype: torch.dtype, scale_dtype: torch.dtype, seed: int, half: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    layer = layer_of(n, k, group, scale_dtype, generator)
    x = torch.randn(m, k, generator=generator).to(dtype)
    half = half and dtype == torch.float16
    layer.accumulate = torch.float16 if half else torch.float32
    with use_backend("triton"):
        out = layer(x)
    expected, magnitude = oracle(layer, x, rounded=m > 16)
    rounding = torch.finfo(dtype).eps / 2 * expected.abs()
    groups = 2e-3 if half else 1e-6  # a group's sum rounded to float16 four times
    assert bool(((out.double() - expected).abs() <= rounding * 1.01 + groups * magnitude + 1e-7).all())


@pytest.mark.parametrize("group", [0, 32, 64, 128])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kernel", ["decode", "prefill"])
def check_before_rounding(group: int, dtype: torch.dtype, kernel: str) -> None:
    """Into a float32 result both kernels stay within 1e-6 of the sum of absolute terms, with the PTX emulated."""
    generator = torch.Generator().manual_seed(0)
    layer = layer_of(130, 512, group, torch.float16, generator)
    x = torch.randn(5, 512, generator=generator).to(dtype)
    out = torch.empty(5, 130)
    arguments = (x, layer.packed, layer.scale_zero, layer.bias, out, 5, 130, 4, 512)
    constants = {"BIAS": True, "GROUP": group, "SCALE": tl.float16, "HALF": False, "ASM": True, "NARROW": False}
    if kernel == "decode":
        w4a16.decode[(2, 1, 1)](*arguments, **constants, BLOCK_M=8, BLOCK_N=128, SPLIT=1)
    else:
        w4a16.prefill[(2, 1)](*arguments, **constants, BLOCK_M=16, BLOCK_N=128)
    expected, magnitude = oracle(layer, x, rounded=kernel == "prefill")
    assert bool(((out - expected).abs() <= 1e-6 * magnitude).all())


@pytest.mark.parametrize("kernel", ["decode", "prefill"])
def check_half_accumulation_overflows_as_documented(kernel: str) -> None:
    """Integer weights of 15 times activations of 40 over 128 features pass 65504; the scaled weights of prefill do
    not.
    """
    rows = 1 if kernel == "decode" else 17
    codes = Int4Codes(
        codes=torch.full((8, 128), 15, dtype=torch.uint8),
        scale=torch.full((8, 1), 0.01, dtype=torch.float16),
        zero=torch.zeros(8, 1, dtype=torch.uint8),
        group_size=128,
    )
    layer = Int4Linear.from_codes(codes)
    layer.accumulate = torch.float16
    with use_backend("triton"):
        out = layer(torch.full((rows, 128), 40.0, dtype=torch.float16))
    assert bool(out.isinf().all()) == (kernel == "decode")


def check_no_rows_and_refusal() -> None:
    layer = Int4Linear(64, 4, dtype=torch.float16)
    with use_backend("triton"):
        assert layer(torch.zeros(0, 64, dtype=torch.float16)).shape == (0, 4)
        with pytest.raises(ValueError, match=r"activations are torch.float32, the kernels take float16 or bfloat16"):
            w4a16_linear(torch.zeros(1, 64), layer.packed, layer.scale_zero, group_size=128)
