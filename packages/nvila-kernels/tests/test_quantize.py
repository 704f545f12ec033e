"""Whole modules: what is replaced, what the report says, and what is refused before anything changes."""

from itertools import pairwise

import pytest
import torch
from nvila_kernels import W4A16, W8A8, Int4Linear, Int8Linear, QuantPolicy, quantize_
from nvila_kernels.calibrate import observe
from nvila_kernels.policy import Scheme
from nvila_kernels.quantize import QuantReport, quantize_linear, replace_
from torch import Tensor, nn

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def make(*widths: int, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(k, n) for k, n in pairwise(widths))).to(dtype)


def relative(exact: Tensor, found: Tensor) -> float:
    return float((exact.float() - found.float()).norm() / exact.float().norm())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("widths", [(1, 1), (7, 5, 3), (130, 200, 33), (256, 128)])
@pytest.mark.parametrize("scheme", [W4A16(), W4A16(group_size=32, symmetric=True), W4A16(group_size=0), W8A8()])
@torch.no_grad()
def test_a_module_works_on(widths: tuple[int, ...], scheme: Scheme, dtype: torch.dtype) -> None:
    model = make(*widths, dtype=dtype)
    x = torch.randn(3, 4, widths[0]).to(dtype)
    expected = model(x)
    report = quantize_(model, QuantPolicy((("*", scheme),)))
    kind = Int8Linear if isinstance(scheme, W8A8) else Int4Linear
    assert all(type(layer) is kind for layer in model)
    assert [line.name for line in report.layers] == [str(index) for index in range(len(widths) - 1)]
    found = model(x)
    assert found.shape == expected.shape
    assert found.dtype == dtype
    assert relative(expected, found) < (0.05 if kind is Int8Linear else 0.5)


def test_the_report_is_the_error_of_the_layer_itself() -> None:
    model = make(200, 64)
    x = torch.randn(50, 200)
    observed = observe(model, lambda: model(x))
    weight, bias = model[0].weight.detach().clone(), model[0].bias.detach().clone()
    exact = x @ weight.T
    for scheme in (W4A16(group_size=64), W4A16(clip=True), W8A8(), W8A8(static=True)):
        layer, line = quantize_linear("0", make(200, 64)[0], scheme, observed["0"])
        assert line.output_error == pytest.approx(relative(exact, layer(x) - bias), rel=1e-2)
        assert line.bytes_before == 200 * 64 * 4 + 64 * 4
        assert line.bytes_after == sum(buffer.nbytes for buffer in layer.buffers())
        if isinstance(layer, Int4Linear):
            codes = layer.codes()
            columns = codes.scale.float().repeat_interleave(codes.group_size, 1)[:, :200]
            zero = codes.zero.float().repeat_interleave(codes.group_size, 1)[:, :200]
            assert line.weight_error == pytest.approx(relative(weight, columns * (codes.codes - zero)), rel=1e-5)
        else:
            found = layer.weight[:, :200] * layer.weight_scale[:, None]
            assert line.weight_error == pytest.approx(relative(weight, found), rel=1e-5)


def test_a_static_scale_covers_every_row_that_came_by() -> None:
    model = make(16, 4)
    x = torch.randn(600, 16)
    x[123, 5] = -50.0
    observed = observe(model, lambda: model(x), capacity=3)
    quantize_(model, QuantPolicy((("*", W8A8(static=True)),)), observed=observed)
    assert isinstance(model[0], Int8Linear)
    assert model[0].x_scale is not None
    assert model[0].x_scale.item() == pytest.approx(50 / 127)


def test_the_report_as_text() -> None:
    model = make(128, 128, 8)
    report = quantize_(model, QuantPolicy((("1", None), ("*", W4A16()))))
    assert report.kept == ("1",)
    text = str(report.under("tower"))
    assert text.splitlines()[0].split() == ["layer", "weight", "error", "output", "error", "scheme"]
    assert text.splitlines()[1].startswith("tower.0 ")
    assert "w4a16 g128" in text
    assert "1 layers, 0.1 -> 0.0 MiB" in text
    assert "not quantized: tower.1" in text
    assert str(QuantReport(layers=())).endswith("0 layers, 0.0 -> 0.0 MiB")


def test_training_mode_stays() -> None:
    model = make(8, 8)
    model[0].eval()
    quantize_(model, QuantPolicy((("*", W8A8()),)))
    assert model.training
    assert not model[0].training


def broken(*widths: int) -> nn.Sequential:
    model = make(*widths)
    model[1].weight.data[0, 0] = float("inf")
    return model


@pytest.mark.parametrize(
    ("model", "scheme", "message"),
    [
        (broken(8, 8, 8), W4A16(), r"1 holds weights that are not finite.*repair the checkpoint"),
        (broken(8, 8, 8), W8A8(), r"1 holds weights that are not finite.*repair the checkpoint"),
        (make(8, 8), W4A16(clip=True), "0: w4a16 g128 clipped needs calibration activations.*pass observed"),
        (make(8, 8), W8A8(static=True), "0: w8a8 static needs calibration activations.*pass observed"),
        (make(8, 8).to("meta"), W8A8(), r"0 has no weights yet \(device meta\): load them first"),
    ],
)
def test_refusals_change_nothing(model: nn.Sequential, scheme: Scheme, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        quantize_(model, QuantPolicy((("*", scheme),)))
    assert all(type(layer) is nn.Linear for layer in model)


def test_activations_of_another_layer_are_refused() -> None:
    model = make(8, 16, 4)
    observed = observe(model, lambda: model(torch.randn(2, 8)))
    with pytest.raises(ValueError, match="1 reads 16 features, its calibration rows have 8: observe this very layer"):
        replace_(model, {"1": W8A8()}, observed={"1": observed["0"]})
    with pytest.raises(ValueError, match="reads 16 features"):
        quantize_linear("1", model[1], W8A8(), observed["0"])
