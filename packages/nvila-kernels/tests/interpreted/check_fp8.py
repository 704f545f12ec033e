"""The float8 casts against torch: all 65,536 inputs of each 16-bit type, every kernel."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nvila_kernels import reference
from nvila_kernels import triton as kernels

TARGETS = [torch.float8_e4m3fn, torch.float8_e5m2]


def equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """The same bits; NaN equals NaN."""
    return bool(((a.view(torch.uint8) == b.view(torch.uint8)) | (a.float().isnan() & b.float().isnan())).all())


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1.0, 0.037, 900.0])
def check_every_input(target: torch.dtype, source: torch.dtype, scale: float) -> None:
    x = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(source).reshape(64, 1024)
    x = torch.where(x.isnan(), torch.zeros_like(x), x)
    factor = torch.tensor([scale])
    expected = reference.cast_fp8(x, factor, target)
    assert equal(kernels.cast_fp8(x, factor, target), expected)
    assert equal(kernels.cast_fp8_transposed(x, factor, target), expected.T.contiguous())


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("source", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mixed", [False, True], ids=["neighbours together", "mixed"])
def check_every_input_by_row(target: torch.dtype, source: torch.dtype, mixed: bool) -> None:
    """A row of neighbours has one exponent, a mixed one has all of them; infinities have no scale."""
    x = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(source)
    x = torch.where(x.isfinite(), x, torch.zeros_like(x))
    x = x.reshape(1024, 64).T.contiguous() if mixed else x.reshape(64, 1024)
    codes, scale = kernels.cast_fp8_rows(x, target)
    expected = reference.cast_fp8_rows(x, target)
    assert equal(codes, expected[0])
    assert torch.equal(scale, expected[1])
    assert equal(kernels.cast_fp8(x, scale, target), expected[0])
    noted, largest = kernels.cast_fp8_amax(x, torch.tensor([0.037]), target)
    assert equal(noted, reference.cast_fp8(x, torch.tensor([0.037]), target))
    assert largest.item() == kernels.amax(x).item() == torch.finfo(source).max


@settings(max_examples=40, deadline=None)
@given(
    m=st.integers(1, 80),
    k=st.integers(1, 300),
    target=st.sampled_from(TARGETS),
    source=st.sampled_from([torch.float16, torch.bfloat16, torch.float32]),
    seed=st.integers(0, 1 << 16),
)
def check_rows_and_amax(m: int, k: int, target: torch.dtype, source: torch.dtype, seed: int) -> None:
    x = torch.randn(m, k, generator=torch.Generator().manual_seed(seed)).to(source)
    x[0] = 0
    codes, scale = kernels.cast_fp8_rows(x, target)
    expected = reference.cast_fp8_rows(x, target)
    assert equal(codes, expected[0])
    assert torch.equal(scale, expected[1])
    assert torch.equal(kernels.amax(x), reference.amax(x))
    assert equal(kernels.cast_fp8(x, scale, target), expected[0])
    noted, largest = kernels.cast_fp8_amax(x, scale[:1], target)
    assert equal(noted, reference.cast_fp8(x, scale[:1], target))
    assert torch.equal(largest, reference.amax(x))


@settings(max_examples=25, deadline=None)
@given(
    m=st.integers(1, 70),
    n=st.integers(1, 140),
    k=st.integers(1, 300),
    bias=st.booleans(),
    by_row=st.booleans(),
    gradient=st.booleans(),
    seed=st.integers(0, 1 << 16),
)
def check_product(m: int, n: int, k: int, bias: bool, by_row: bool, gradient: bool, seed: int) -> None:
    """Against the product in float64: a weight of e4m3 with activations of e4m3 or gradients of e5m2."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(m, k, generator=generator).to(torch.float8_e5m2 if gradient else torch.float8_e4m3fn)
    weight = torch.randn(n, k, generator=generator).to(torch.float8_e4m3fn)
    x_scale, weight_scale = (torch.rand(size if by_row else 1, generator=generator) + 0.1 for size in (m, n))
    shift = torch.randn(n, generator=generator) if bias else None
    out = kernels.fp8_linear(x, x_scale, weight, weight_scale, shift, torch.float32)
    terms = (x.double() * x_scale[:, None].double(), weight.double() * weight_scale[:, None].double())
    expected = terms[0] @ terms[1].T + (0 if shift is None else shift.double())
    magnitude = terms[0].abs() @ terms[1].abs().T + 1
    assert bool(((out.double() - expected).abs() <= 1e-6 * magnitude).all())
