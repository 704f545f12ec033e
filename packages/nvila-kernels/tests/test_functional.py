"""The functions and modules against float64 on the CPU, and their refusals."""

import copy

import pytest
import torch
from nvila_kernels import (
    Int4Linear,
    Int8Linear,
    available_backends,
    cast_fp8,
    use_backend,
    w4a16_linear,
    w8a8_linear,
)
from nvila_kernels.quantization import dequantize_int4
from torch import nn


@pytest.mark.parametrize("group", [0, 32, 64, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (3, 130, 257), (17, 5, 512)])
def test_int4_linear_equals_its_dequantized_weight(group: int, dtype: torch.dtype, m: int, n: int, k: int) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(k, n, dtype=dtype)
    layer = Int4Linear.from_linear(linear, group_size=group, scale_dtype=torch.bfloat16)
    x = torch.randn(m, k, dtype=dtype)
    weight = dequantize_int4(layer.codes(), torch.float64)
    expected = x.double() @ weight.T + linear.bias.double()
    torch.testing.assert_close(layer(x).double(), expected, rtol=1e-2 if dtype != torch.float32 else 1e-5, atol=1e-5)


def test_int4_close_to_the_float_layer() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(256, 64)
    x = torch.randn(2, 5, 256)
    out = Int4Linear.from_linear(linear, group_size=32)(x)
    assert out.shape == (2, 5, 64)
    assert nn.functional.cosine_similarity(out.flatten(), linear(x).flatten(), dim=0) > 0.99


@pytest.mark.parametrize(("n", "k"), [(48, 64), (130, 4304), (7, 3)])
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("static", [False, True])
def test_int8_linear_close_to_the_float_layer(n: int, k: int, gelu: bool, static: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(k, n)
    x = torch.randn(3, 4, k)
    expected = linear(x)
    if gelu:
        expected = nn.functional.gelu(expected, approximate="tanh")
    layer = Int8Linear.from_linear(linear, gelu=gelu, x_scale=x.abs().max() / 127 if static else None)
    assert layer.weight.shape[1] % 128 == 0
    error = (layer(x) - expected).norm() / expected.norm()
    assert error < 0.03


def test_a_cast_to_16_bits_keeps_the_scales() -> None:
    layer = Int8Linear.from_linear(nn.Linear(16, 8), x_scale=torch.tensor(0.1))
    scale = layer.weight_scale.clone()
    layer.to(torch.bfloat16)
    assert torch.equal(layer.weight_scale, scale)
    assert layer.x_scale is not None
    assert layer.x_scale.dtype == torch.float32
    assert layer.bias is not None
    assert layer.bias.dtype == torch.bfloat16
    assert layer(torch.randn(2, 16, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.parametrize("bias", [False, True])
def test_state_survives(bias: bool) -> None:
    for layer in (
        Int4Linear.from_linear(nn.Linear(70, 9, bias=bias), group_size=32),
        Int8Linear.from_linear(nn.Linear(70, 9, bias=bias)),
    ):
        kwargs = {"group_size": 32} if isinstance(layer, Int4Linear) else {}
        empty = type(layer)(70, 9, bias=bias, **kwargs)
        empty.load_state_dict(layer.state_dict())
        x = torch.randn(2, 70)
        assert torch.equal(empty(x), layer(x))
        assert torch.equal(copy.deepcopy(layer)(x), layer(x))
        assert f"bias={bias}" in repr(layer)


def test_gradients_reach_the_activations_and_the_bias() -> None:
    layer = Int4Linear.from_linear(nn.Linear(96, 12), group_size=32)
    x = torch.randn(4, 96, requires_grad=True)
    bias = torch.zeros(12, requires_grad=True)
    out = w4a16_linear(x, layer.packed, layer.scale_zero, bias, group_size=32)
    out.square().sum().backward()
    weight = dequantize_int4(layer.codes())
    assert x.grad is not None
    assert bias.grad is not None
    torch.testing.assert_close(x.grad, 2 * out.detach() @ weight)
    torch.testing.assert_close(bias.grad, 2 * out.detach().sum(0))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_cast_fp8(dtype: torch.dtype) -> None:
    x = torch.randn(2, 6, 40) * 100
    step = 2**-3 if dtype == torch.float8_e4m3fn else 2**-2
    for codes, scale in (cast_fp8(x, dtype), cast_fp8(x, dtype, by_row=True)):
        assert codes.shape == x.shape
        assert bool(((codes.float() * scale - x).abs() <= step / 2 * x.abs() + scale * 0.01).all())
    codes, scale = cast_fp8(x, dtype, scale=torch.tensor([1e-4]))
    assert codes.float().abs().max() == torch.finfo(dtype).max


def test_refusals() -> None:
    layer = Int4Linear(256, 8, group_size=64)
    with pytest.raises(ValueError, match="x has 384 features, the packed weight has 2 blocks of 128"):
        layer(torch.zeros(1, 384))
    with pytest.raises(ValueError, match=r"scale_zero has shape \(4, 8\).*need \(8, 8\)"):
        w4a16_linear(torch.zeros(1, 256), layer.packed, layer.scale_zero, group_size=32)
    half = torch.zeros(1, 256, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"float16 accumulation needs float16 activations, not torch.bfloat16"):
        w4a16_linear(half, layer.packed, layer.scale_zero, group_size=64, accumulate=torch.float16)
    with pytest.raises(ValueError, match=r"torch.int8 cannot accumulate"):
        w4a16_linear(torch.zeros(1, 256), layer.packed, layer.scale_zero, group_size=64, accumulate=torch.int8)
    with pytest.raises(ValueError, match="the weight has 64 features, x has 64, which pads to 128"):
        w8a8_linear(torch.zeros(1, 64), torch.zeros(4, 64, dtype=torch.int8), torch.ones(4))
    with pytest.raises(ValueError, match=r"torch.int8 is no float8 type"):
        cast_fp8(torch.zeros(1, 4), torch.int8)
    with pytest.raises(ValueError, match="exclude each other"):
        cast_fp8(torch.zeros(1, 4), scale=torch.ones(1), by_row=True)


def test_backends() -> None:
    assert "reference" in available_backends()
    with use_backend("reference"):
        Int4Linear(64, 4)(torch.zeros(1, 64))
    with (
        pytest.raises(ValueError, match="backend 'abacus' is not available here: use one of reference"),
        use_backend("abacus"),
    ):
        pass
