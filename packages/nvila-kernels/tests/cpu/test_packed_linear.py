"""Packed layers against the layers that they were made of, and as torch sees them."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from nvila_kernels import Int4Linear, Int8Linear, available_backends, use_backend
from nvila_kernels.cpu import PackedLinear, optimize_
from torch import nn


def model(group: int = 128) -> nn.Sequential:
    torch.manual_seed(0)
    first, second = nn.Linear(256, 96), nn.Linear(96, 40, bias=False)
    return nn.Sequential(Int4Linear.from_linear(first, group_size=group), Int8Linear.from_linear(second, gelu=True))


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    return float((found.float() - expected.float()).norm() / expected.float().norm()) < 0.04


@pytest.mark.parametrize("group", [0, 32, 128])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_an_optimized_model_answers_as_before(group: int, dtype: torch.dtype) -> None:
    layers = model(group).to(dtype)
    inputs = [torch.randn(shape, dtype=dtype) for shape in ((1, 256), (2, 30, 256), (0, 256))]
    expected = [layers(x) for x in inputs]
    done = optimize_(layers)
    assert [each.name for each in done] == ["0", "1"]
    assert all(isinstance(layer, PackedLinear) for layer in layers)
    assert "kernel=" in repr(layers)
    for x, before in zip(inputs, expected, strict=True):
        assert close(layers(x), before) if x.numel() else layers(x).shape == before.shape


def test_nothing_is_left_of_the_layers() -> None:
    layers = model()
    old = [weakref.ref(layer) for layer in layers]
    optimize_(layers)
    gc.collect()
    assert [ref() for ref in old] == [None, None]


def test_without_int8_activations_the_product_is_exact() -> None:
    layers = nn.Sequential(model()[0])
    x = torch.randn(3, 256)
    expected = layers(x)
    (done,) = optimize_(layers, int8_activations=False)
    assert "int8" not in done.choice.kernel
    assert float((layers(x) - expected).norm() / expected.norm()) < 1e-2


def test_memory_decides_between_kernels_and_is_refused_where_none_is_small_enough() -> None:
    smallest = 0.985 * 256 * 96 * 4.25 / 8 + 40 * 100
    with pytest.raises(
        ValueError, match=r"packed weights take \d+ bytes at least, more than max_memory of 9000: allow"
    ):
        optimize_(model(), max_memory=9000)
    done = optimize_(model(), max_memory=2 * smallest)
    assert sum(each.choice.bytes for each in done) <= 2 * smallest


def test_compiles_with_any_number_of_rows() -> None:
    layers = model()
    optimize_(layers)
    torch.compiler.reset()
    compiled = torch.compile(layers, dynamic=True, backend="aot_eager")
    with torch.inference_mode():
        for rows in (2, 5, 40):
            x = torch.randn(1, rows, 256)
            assert torch.equal(compiled(x), layers(x))


def test_a_copy_shares_the_packing() -> None:
    layers = model()
    optimize_(layers)
    x = torch.randn(2, 256)
    expected = layers(x)
    other = copy.deepcopy(layers)
    assert other[0].weight is layers[0].weight
    del layers
    assert torch.equal(other(x), expected)


def test_refusals() -> None:
    layers = model()
    with pytest.raises(ValueError, match="the layer is on meta, these kernels run on the CPU"):
        optimize_(copy.deepcopy(layers).to("meta"))
    optimize_(layers)
    with pytest.raises(
        ValueError, match="0 is packed for this machine and cannot be saved: load the model again, with"
    ):
        layers.state_dict()
    with pytest.raises(ValueError, match="x has 128 features, the layer reads 256"):
        layers(torch.zeros(1, 128))
    with pytest.raises(ValueError, match=r"only answers and cannot be trained: .* optimize=False"):
        layers.train()
    with pytest.raises(ValueError, match=r"runs on the CPU and cannot be moved to meta: .* optimize=False"):
        layers.to("meta")
    with pytest.raises(ValueError, match=r"packed for this machine cannot be pickled: .* optimize=False"):
        pickle.dumps(layers)


def test_what_changes_nothing_works() -> None:
    layers = model()
    optimize_(layers)
    x = torch.randn(2, 256)
    expected = layers(x)
    assert torch.equal(layers.eval().cpu().float()(x), expected)
    assert close(layers.bfloat16()(x.bfloat16()).float(), expected)


def test_the_backend_computes_with_what_it_is_given() -> None:
    """It keeps nothing: other scales, or another view of the same memory, are another weight."""
    assert "cpu" in available_backends()
    layers = model()
    x = torch.randn(3, 256)
    with use_backend("cpu"):
        assert close(layers(x), model()(x))
        layers[0].scale_zero = layers[0].scale_zero - (1 << 24)
        assert close(layers(x), model_with_other_scales()(x))
        layers[1].weight_scale.mul_(2)
        found = layers(x)
        layers[1].weight_scale.div_(2)
    assert not close(found, layers(x))


def model_with_other_scales() -> nn.Sequential:
    layers = model()
    layers[0].scale_zero = layers[0].scale_zero - (1 << 24)
    return layers
