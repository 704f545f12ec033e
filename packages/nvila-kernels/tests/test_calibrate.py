"""AWQ, clipping and SmoothQuant: never worse on the calibration rows, and better where there are outliers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nvila_kernels import W4A16, W8A8, QuantPolicy, awq_scales, quantize_, smooth_scales
from nvila_kernels.calibrate import Fold, clip_int4, fold_block_, observe
from nvila_kernels.calibrate.clip import group_basis, group_errors
from nvila_kernels.policy import Scheme
from nvila_kernels.quantization import dequantize_int4
from nvila_kernels.quantize import replace_
from torch import Tensor, nn

SCHEMES = st.builds(
    W4A16,
    group_size=st.sampled_from([0, 32, 64, 128]),
    symmetric=st.booleans(),
    clip=st.booleans(),
    scale_dtype=st.sampled_from([torch.float16, torch.bfloat16]),
)


def outliers(rows: int, features: int, *, seed: int = 0) -> Tensor:
    """Activations of which every twelfth feature is 40 times larger than the others."""
    x = torch.randn(rows, features, generator=torch.Generator().manual_seed(seed))
    x[:, ::12] *= 40
    return x


def weight_of(n: int, k: int, *, seed: int = 1) -> Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed)) * 0.05


def squared(x: Tensor, weight: Tensor, rounded: Tensor) -> Tensor:
    """The squared error of each output channel, in float64."""
    return (x.double() @ (weight - rounded).double().T).square().sum(0)


@settings(max_examples=25, deadline=None)
@given(scheme=SCHEMES, k=st.integers(1, 200), readers=st.integers(1, 3), rows=st.integers(1, 40))
def test_awq_is_never_worse_than_rounding(scheme: W4A16, k: int, readers: int, rows: int) -> None:
    x = outliers(rows, k, seed=k)
    weights = [weight_of(3 + index, k, seed=index) for index in range(readers)]
    found = awq_scales(weights, x, scheme=scheme, steps=4)
    assert found.scale.shape == (k,)
    assert bool((found.scale > 0).all())
    assert found.error <= found.plain_error


@pytest.mark.parametrize("clip", [False, True])
def test_the_error_that_awq_promises_is_the_one_that_comes(clip: bool) -> None:
    scheme = W4A16(group_size=32, clip=clip)
    x, weights = outliers(60, 96), [weight_of(40, 96), weight_of(8, 96, seed=2)]
    found = awq_scales(weights, x, scheme=scheme)
    total = 0.0
    for weight in weights:
        scaled = weight * found.scale
        codes = clip_int4(scaled, x / found.scale, scheme) if clip else scheme.quantize(scaled)
        error = squared(x, weight, dequantize_int4(codes) / found.scale).sum()
        total += float(error / squared(x, weight, torch.zeros_like(weight)).sum())
    assert found.error == pytest.approx(total, rel=1e-4)


def test_awq_pays_where_there_are_outliers() -> None:
    weight, x = weight_of(64, 256), outliers(200, 256)
    found = awq_scales([weight], x)
    assert found.exponent > 0
    assert found.error < 0.6 * found.plain_error
    unseen = outliers(200, 256, seed=9)
    codes = W4A16().quantize(weight * found.scale)
    plain = dequantize_int4(W4A16().quantize(weight))
    assert (
        squared(unseen, weight, dequantize_int4(codes) / found.scale).sum() < 0.6 * squared(unseen, weight, plain).sum()
    )


def test_features_can_share_a_scale() -> None:
    weight, x = weight_of(16, 64), outliers(50, 64)
    channels = torch.arange(64) // 2
    found = awq_scales([weight], x, channels=channels)
    assert found.scale.shape == (32,)
    assert found.error <= found.plain_error
    smooth = smooth_scales(x.abs().amax(0), [weight], channels=channels)
    pairs = x.abs().amax(0).reshape(32, 2).amax(1), weight.abs().amax(0).reshape(32, 2).amax(1)
    torch.testing.assert_close(smooth, (pairs[0] / pairs[1]).sqrt())


def test_silent_activations_leave_the_weights_alone() -> None:
    assert awq_scales([weight_of(4, 8)], torch.zeros(3, 8)).scale.tolist() == [1.0] * 8


@settings(max_examples=25, deadline=None)
@given(scheme=SCHEMES, n=st.integers(1, 6), k=st.integers(1, 300), rows=st.integers(1, 150))
def test_clipping_makes_no_output_worse(scheme: W4A16, n: int, k: int, rows: int) -> None:
    weight, x = weight_of(n, k, seed=k), outliers(rows, k, seed=rows)
    clipped, plain = clip_int4(weight, x, scheme), scheme.quantize(weight)
    assert clipped.group_size == plain.group_size
    before, after = squared(x, weight, dequantize_int4(plain)), squared(x, weight, dequantize_int4(clipped))
    assert bool((after <= before * (1 + 1e-4) + 1e-9).all())


def test_clipping_pays_for_ordinary_weights() -> None:
    weight, x = weight_of(600, 256), torch.randn(300, 256)
    plain = squared(x, weight, dequantize_int4(W4A16().quantize(weight))).sum()
    assert squared(x, weight, dequantize_int4(clip_int4(weight, x, W4A16()))).sum() < 0.9 * plain


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 100), k=st.integers(1, 90), group=st.sampled_from([5, 32]))
def test_the_basis_measures_what_the_rows_measure(rows: int, k: int, group: int) -> None:
    x, difference = torch.randn(rows, k), torch.randn(3, k)
    found = group_errors(difference, group_basis(x, group))
    parts = zip(x.split(group, dim=1), difference.split(group, dim=1), strict=True)
    expected = torch.stack([(d @ part.T).square().sum(-1) for part, d in parts], dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_smoothing_by_hand() -> None:
    weights = [torch.tensor([[4.0, -1.0, 0.0]]), torch.tensor([[1.0, 2.0, 0.0]])]
    assert smooth_scales(torch.tensor([16.0, 8.0, 3.0]), weights).tolist() == [2.0, 2.0, 1.0]
    assert smooth_scales(torch.tensor([16.0, 8.0, 0.0]), weights, alpha=1).tolist() == [16.0, 8.0, 1.0]
    assert smooth_scales(torch.tensor([16.0, 8.0, 3.0]), weights, alpha=0).tolist() == [0.25, 0.5, 1.0]


class Tower(nn.Module):
    def __init__(self, width: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.norm, self.qkv = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)
        with torch.no_grad():
            self.norm.weight[::12] *= 40
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.qkv(self.norm(x))


FOLDS = (Fold(source="norm", targets=("qkv",)),)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scheme", [W8A8(), W8A8(static=True), W4A16(group_size=32)])
@pytest.mark.parametrize("width", [72, 200])
@torch.no_grad()
def test_a_folded_block_is_quantized_better(scheme: Scheme, width: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    tower, x = Tower(width, dtype), torch.randn(100, width).to(dtype)
    observed = observe(tower, lambda: tower(x))
    plain, expected = Tower(width, dtype), tower(x)
    plain.load_state_dict(tower.state_dict())
    without = quantize_(plain, QuantPolicy((("*", scheme),)), observed=observed)
    seen = fold_block_(tower, FOLDS, observed, {"qkv": scheme})
    torch.testing.assert_close(
        tower(x), expected, rtol=0, atol=16 * torch.finfo(dtype).eps * float(expected.abs().max())
    )
    with_folds = replace_(tower, {"qkv": scheme}, observed=seen)
    before, after = without.layers[0].output_error, with_folds.layers[0].output_error
    assert before is not None
    assert after is not None
    assert after < 0.7 * before
    errors = [float((model(x).float() - expected.float()).norm()) for model in (tower, plain)]
    assert errors[0] < 0.8 * errors[1]


def test_a_fold_without_a_quantized_target_is_passed_over() -> None:
    tower = Tower(16, torch.float32)
    before = tower.norm.weight.clone()
    assert fold_block_(tower, FOLDS, {}, {}) == {}
    assert torch.equal(tower.norm.weight, before)


def test_refusals() -> None:
    weight, x = weight_of(4, 8), torch.randn(3, 8)
    with pytest.raises(ValueError, match=r"rows of 8 features and weights of shape \[4, 8\], \[2, 7\]"):
        awq_scales([weight, weight_of(2, 7)], x)
    with pytest.raises(ValueError, match="weights of shape none"):
        awq_scales([], x)
    with pytest.raises(ValueError, match="0 calibration rows decide nothing: observe the layers first"):
        awq_scales([weight], x[:0])
    with pytest.raises(ValueError, match=r"8 features and weights of shape \[2, 7\]"):
        smooth_scales(x[0].abs(), [weight_of(2, 7)])
    with pytest.raises(ValueError, match=r"alpha 1\.5 moves no share of the difficulty: use 0 to 1"):
        smooth_scales(x[0].abs(), [weight], alpha=1.5)
    pair = nn.ModuleDict({"norm": nn.LayerNorm(8), "a": nn.Linear(8, 4), "b": nn.Linear(8, 4)})
    fold = Fold(source="norm", targets=("a", "b"))
    with pytest.raises(ValueError, match="a, b share one scale but not one scheme: give them the same"):
        fold_block_(pair, [fold], {}, {"a": W4A16(), "b": W8A8()})
    with pytest.raises(ValueError, match="no calibration activations of a, b: run data that reaches them"):
        fold_block_(pair, [fold], {}, {"a": W4A16(), "b": W4A16()})
