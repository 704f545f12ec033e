"""The scaled float8 product against torch's own, and delayed scaling against a history kept by hand."""

import pytest
import torch
from nvila_kernels import DelayedScale, cast_fp8, cast_fp8_transposed, fp8_linear
from nvila_kernels.delayed_scale import NO_CAST

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("by_row", [False, True])
def test_product_equals_torch(dtype: torch.dtype, by_row: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, x_scale = cast_fp8(torch.randn(32, 64, generator=generator), dtype, by_row=by_row)
    weight, weight_scale = cast_fp8(torch.randn(48, 64, generator=generator), by_row=by_row)
    expected = torch._scaled_mm(x, weight.T, x_scale, weight_scale.reshape(1, -1), out_dtype=torch.bfloat16)
    out = fp8_linear(x, x_scale, weight, weight_scale)
    torch.testing.assert_close(out, expected, rtol=2**-7, atol=1e-3)


def test_leading_dimensions_and_bias() -> None:
    x, x_scale = cast_fp8(torch.randn(2, 3, 10), by_row=True)
    weight, weight_scale = cast_fp8(torch.randn(5, 10))
    bias = torch.arange(5.0)
    out = fp8_linear(x, x_scale, weight, weight_scale, bias, dtype=torch.float32)
    expected = (x.float() * x_scale) @ (weight.float() * weight_scale).T + bias
    torch.testing.assert_close(out, expected)


def test_refusals() -> None:
    codes, one = torch.zeros(2, 8).to(E4M3), torch.ones(1)
    with pytest.raises(ValueError, match=r"x is torch.float32, not float8: cast it with cast_fp8"):
        fp8_linear(torch.zeros(2, 8), one, codes, one)
    with pytest.raises(ValueError, match="x has 4 features, the weight has 8: pass operands of one width"):
        fp8_linear(codes[:, :4], one, codes, one)
    with pytest.raises(ValueError, match="weight_scale holds 3 scales: pass one for all or one for each of 2 rows"):
        fp8_linear(codes, one, codes, torch.ones(3))
    with pytest.raises(ValueError, match=r"torch.int8 is no float8 type known here"):
        DelayedScale(torch.int8)
    with pytest.raises(ValueError, match="a history of 0 casts holds none: remember at least 1"):
        DelayedScale(history=0)


@pytest.mark.parametrize("scale", [None, torch.tensor([0.5])])
def test_the_transposed_cast_is_the_transpose_of_the_cast(scale: torch.Tensor | None) -> None:
    x = torch.randn(5, 7)
    (codes, own), (across, same) = cast_fp8(x, E5M2, scale=scale), cast_fp8_transposed(x, E5M2, scale=scale)
    assert torch.equal(own, same)
    assert across.is_contiguous()
    assert torch.equal(across.T.float(), codes.float())
    with pytest.raises(ValueError, match=r"x has 3 dimensions, a transpose needs 2: pass one \[m, k\] matrix"):
        cast_fp8_transposed(x[None])


@pytest.mark.parametrize(("dtype", "limit"), [(E4M3, 448.0), (E5M2, 57344.0)])
def test_the_scale_follows_the_history(dtype: torch.dtype, limit: float) -> None:
    delayed = DelayedScale(dtype, history=2)
    largest = [4.0, 1.0, 2.0, 0.5]
    before = [4.0, 4.0, 4.0, 2.0]  # the larger of the last two casts; at first that of the tensor itself
    for value, expected in zip(largest, before, strict=True):
        codes, scale = delayed(torch.tensor([[-value, 0.25 * value]]))
        assert scale.item() == pytest.approx(expected / limit)
        torch.testing.assert_close(codes.float() * scale, torch.tensor([[-value, 0.25 * value]]), rtol=0.07, atol=0)


def test_what_outgrows_the_history_saturates_once() -> None:
    delayed = DelayedScale(history=1)
    delayed(torch.ones(1, 4))
    codes, scale = delayed(torch.full((1, 4), 8.0))
    assert (codes.float() * scale).tolist() == [[1.0] * 4]
    codes, scale = delayed(torch.full((1, 4), 8.0))
    assert (codes.float() * scale).tolist() == [[8.0] * 4]


def test_infinity_leaves_no_mark() -> None:
    delayed = DelayedScale(history=4)
    delayed(torch.full((1, 4), 3.0))
    delayed(torch.full((1, 4), torch.inf))
    assert delayed.history.tolist() == [3.0, 3.0, NO_CAST, NO_CAST]
    fresh = DelayedScale(history=2)
    assert fresh(torch.full((1, 4), torch.inf))[1].item() == 1.0
    assert fresh(torch.ones(1, 4))[1].item() == 1.0
    assert fresh(torch.ones(1, 4))[1].item() == pytest.approx(1 / 448)


def test_a_scale_that_is_asked_for_is_not_noted() -> None:
    delayed = DelayedScale(history=2)
    x = torch.full((1, 4), 3.0)
    assert delayed.scale(x).item() == pytest.approx(3 / 448)
    assert delayed.history.tolist() == [NO_CAST, NO_CAST]


def test_what_was_saved_goes_on() -> None:
    """The history comes back, zeros that were cast included, and is no cast to 16 bits."""
    first, second = DelayedScale(history=3), DelayedScale(history=3)
    first(torch.zeros(1, 4))
    second.load_state_dict(first.state_dict())
    x = torch.full((1, 4), 1.01)
    assert first(x)[1].item() == second(x)[1].item() == 1.0  # of the zeros before
    assert torch.equal(second.bfloat16().history, first.history)
    fresh = DelayedScale(history=3)
    fresh.load_state_dict(DelayedScale(history=3).state_dict())
    assert fresh(x)[1].item() == pytest.approx(1.01 / 448)


def test_delayed_scaling_compiles_whole() -> None:
    delayed = DelayedScale(history=3)
    compiled = torch.compile(delayed, fullgraph=True, backend="aot_eager")
    x = torch.randn(4, 8)
    compiled(x)
    assert delayed.history.tolist() == [x.abs().max().item(), NO_CAST, NO_CAST]
    compiled(x)
    assert delayed.history.tolist() == [*[x.abs().max().item()] * 2, NO_CAST]


@pytest.mark.parametrize("by_row", [False, True])
def test_zeros_among_values_near_underflow_stay_zero(by_row: bool) -> None:
    """Gradients in bfloat16 reach down to 1e-40, where the reciprocal of max|x| / 57344 is infinite."""
    x = torch.tensor([[0.0, 1e-38, -1e-40]], dtype=torch.bfloat16)
    codes, scale = cast_fp8(x, E5M2, by_row=by_row)
    torch.testing.assert_close(codes.double() * scale.double(), x.double(), rtol=0.125, atol=1e-42)
