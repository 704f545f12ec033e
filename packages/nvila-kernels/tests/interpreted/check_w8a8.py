"""The int8 kernels against exact integers, and the fused quantizations against torch."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nvila_kernels import reference
from nvila_kernels import triton as kernels
from nvila_kernels.quantization import padded_features
from nvila_kernels.triton import w8a8
from nvila_kernels.triton.tiles import Tile

FLOATS = [torch.float16, torch.bfloat16, torch.float32]


@pytest.fixture(params=[False, True], ids=["plain", "halves"])
def small_tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tile that ragged shapes cross several times."""
    tile = Tile(block_m=32, block_n=128, block_k=64, warps=4, stages=3, halves=request.param)
    monkeypatch.setattr(w8a8, "tile_for", lambda *problem: tile)


def operands(m: int, n: int, k: int, seed: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    padded = padded_features(k)
    x = torch.randint(-127, 128, (m, padded), generator=generator, dtype=torch.int8)
    weight = torch.randint(-127, 128, (n, padded), generator=generator, dtype=torch.int8)
    x[:, k:] = 0
    weight[:, k:] = 0
    x_scale = torch.rand(m, generator=generator) * 0.02
    return x, x_scale, weight, torch.rand(n, generator=generator) * 0.02, torch.randn(n, generator=generator)


SHAPES = {
    "m": st.integers(1, 70),
    "n": st.integers(1, 260),
    "k": st.integers(1, 300),
    "bias": st.booleans(),
    "static": st.booleans(),
    "dtype": st.sampled_from(FLOATS),
    "seed": st.integers(0, 1 << 16),
}


@settings(max_examples=60, deadline=None)
@given(**SHAPES)
def check_product_is_exact(m: int, n: int, k: int, bias: bool, static: bool, dtype: torch.dtype, seed: int) -> None:
    x, x_scale, weight, weight_scale, shift = operands(m, n, k, seed)
    arguments = (x, x_scale[:1] if static else x_scale, weight, weight_scale, shift if bias else None, False)
    assert torch.equal(kernels.int8_linear(*arguments, dtype), reference.int8_linear(*arguments, dtype))


@settings(max_examples=40, deadline=None)
@given(gelu=st.booleans(), **SHAPES)
def check_requantized_product(
    gelu: bool, m: int, n: int, k: int, bias: bool, static: bool, dtype: torch.dtype, seed: int
) -> None:
    x, x_scale, weight, weight_scale, shift = operands(m, n, k, seed)
    out_scale = torch.tensor([0.3])
    arguments = (x, x_scale[:1] if static else x_scale, weight, weight_scale, shift if bias else None, gelu, out_scale)
    out = kernels.int8_linear_requantize(*arguments)
    expected = reference.int8_linear_requantize(*arguments)
    difference = (out.int() - expected.int()).abs()
    assert int(difference.max()) <= int(gelu)  # the exponential may differ in the last place, at a tie
    assert float((difference > 0).float().mean()) < 1e-3
    assert int(out[:, n:].abs().sum()) == 0


@pytest.mark.usefixtures("small_tile")
@pytest.mark.parametrize(("n", "k"), [(1152, 1152), (130, 4304)])
def check_siglip_shapes(n: int, k: int) -> None:
    x, x_scale, weight, weight_scale, shift = operands(33, n, k, 0)
    arguments = (x, x_scale, weight, weight_scale, shift, False, torch.float16)
    assert torch.equal(kernels.int8_linear(*arguments), reference.int8_linear(*arguments))


@pytest.mark.usefixtures("small_tile")
@pytest.mark.parametrize("dtype", FLOATS)
def check_gelu(dtype: torch.dtype) -> None:
    arguments = (*operands(40, 200, 256, 1), True, dtype)
    torch.testing.assert_close(kernels.int8_linear(*arguments), reference.int8_linear(*arguments))


ROWS = {
    "m": st.integers(1, 9),
    "k": st.integers(1, 700) | st.sampled_from([1152, 4304]),
    "dtype": st.sampled_from(FLOATS),
    "seed": st.integers(0, 1 << 16),
}


def tokens(m: int, k: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    return (torch.randn(m, k, generator=torch.Generator().manual_seed(seed)) * 3).to(dtype)


def every_input(dtype: torch.dtype, mixed: bool) -> torch.Tensor:
    """All finite values of a 16-bit type; a row of neighbours has one exponent, a mixed one has all of them."""
    x = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(dtype)
    x = torch.where(x.isfinite(), x, torch.zeros_like(x))
    return x.reshape(1024, 64).T.contiguous() if mixed else x.reshape(64, 1024)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mixed", [False, True], ids=["neighbours together", "mixed"])
def check_every_input(dtype: torch.dtype, mixed: bool) -> None:
    x = every_input(dtype, mixed)
    codes, scale = kernels.quantize_rows(x)
    expected = reference.quantize_rows(x)
    assert torch.equal(codes, expected[0])
    assert torch.equal(scale, expected[1])
    for step in (1.0, 0.037, 900.0):
        static = torch.tensor([step])
        assert torch.equal(kernels.quantize_static(x, static), reference.quantize_static(x, static))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mixed", [False, True], ids=["neighbours together", "mixed"])
def check_gelu_of_every_input(dtype: torch.dtype, mixed: bool) -> None:
    """All finite values against GELU in float64: half a step of the row, and what float32 cannot tell of its tail."""
    x = every_input(dtype, mixed)
    wide = x.double()
    exact = 0.5 * wide * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (wide + 0.044715 * wide**3)))
    codes, scale = kernels.gelu_quantize(x)
    step = scale.double()[:, None]
    tail = 2e-7 * wide.abs().clamp(max=10)  # 1 + tanh(...) where the two cancel
    assert bool(((codes.double() * step - exact).abs() <= 0.5001 * step + tail).all())
    largest = exact.abs().amax(-1)
    tall = largest > 1e-5
    torch.testing.assert_close(scale.double()[tall] * 127, largest[tall], rtol=2e-5, atol=0)


@settings(max_examples=40, deadline=None)
@given(**ROWS)
def check_quantize_is_exact(m: int, k: int, dtype: torch.dtype, seed: int) -> None:
    x = tokens(m, k, dtype, seed)
    x[0] = 0
    codes, scale = kernels.quantize_rows(x)
    expected = reference.quantize_rows(x)
    assert torch.equal(codes, expected[0])
    assert torch.equal(scale, expected[1])
    static = torch.tensor([0.02])
    assert torch.equal(kernels.quantize_static(x, static), reference.quantize_static(x, static))


@settings(max_examples=30, deadline=None)
@given(**ROWS)
def check_fused_quantize(m: int, k: int, dtype: torch.dtype, seed: int) -> None:
    x = tokens(m, k, dtype, seed)
    generator = torch.Generator().manual_seed(seed)
    gain, shift = (torch.randn(k, generator=generator).to(dtype) for _ in range(2))
    pairs = [
        (kernels.gelu_quantize(x), reference.gelu_quantize(x)),
        (kernels.layer_norm_quantize(x, gain, shift, 1e-6), reference.layer_norm_quantize(x, gain, shift, 1e-6)),
    ]
    for (codes, scale), (expected_codes, expected_scale) in pairs:
        # A row of GELU's left tail may be exactly 0 for torch (tanh saturates) and 1e-9 for the kernel, with scales of
        # 1 and 1e-11 that mean the same; such rows are compared by what they mean, all others by scale and code.
        values, expected = codes * scale[:, None], expected_codes * expected_scale[:, None]
        tail = expected.abs().amax(-1) < 1e-6
        assert float(values[tail].abs().sum()) < 1e-6 * max(1, values[tail].numel())
        # torch and the kernel sum a row in different orders: codes at a tie may differ by one.
        torch.testing.assert_close(scale[~tail], expected_scale[~tail], rtol=2e-5, atol=1e-7)
        difference = (codes[~tail].int() - expected_codes[~tail].int()).abs()
        assert int(difference.sum()) == 0 or int(difference.max()) <= 1
        assert float((difference > 0).float().mean().nan_to_num()) < 0.01


def check_a_row_too_wide() -> None:
    with pytest.raises(ValueError, match="a row of 65664 features exceeds the 65536 that one program holds"):
        kernels.quantize_rows(torch.zeros(1, 65537))
