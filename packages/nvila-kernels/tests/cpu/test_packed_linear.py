"""Settled layers against the layers that they were made of, and as torch sees them."""

import copy
import gc
import weakref

import pytest
import torch
from nvila_kernels import Int4Linear, Int8Linear, available_backends, use_backend
from nvila_kernels.cpu import PackedLinear, optimize_
from nvila_kernels.cpu.packed_weight import packed_run
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode


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
def test_a_settled_model_answers_as_before(group: int, dtype: torch.dtype) -> None:
    layers = model(group).to(dtype)
    inputs = [torch.randn(shape, dtype=dtype) for shape in ((1, 256), (2, 30, 256), (0, 256))]
    expected = [layers(x) for x in inputs]
    done = optimize_(layers)
    assert [each.name for each in done] == ["0", "1"]
    assert all(isinstance(layer, PackedLinear) for layer in layers)
    assert "decode=" in repr(layers)
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
    (done,) = optimize_(layers, int8_activations=False, memory=1.2)
    assert "int8" not in str(done.choice.kernels)
    assert float((layers(x) - expected).norm() / expected.norm()) < 1e-2


def test_compiles_whole_and_exports_with_any_number_of_rows() -> None:
    layers = model()
    optimize_(layers)
    compiled = torch.compile(layers, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (2, 5, 40):
        x = torch.randn(1, rows, 256)
        assert torch.equal(compiled(x), layers(x))
    dynamic = ({0: torch.export.Dim("rows", min=2, max=4096)},)
    program = torch.export.export(nn.Sequential(layers), (torch.randn(8, 256),), dynamic_shapes=dynamic)
    x = torch.randn(37, 256)
    assert torch.equal(program.module()(x), layers(x))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_opcheck() -> None:
    layers = model()
    optimize_(layers)
    layer = layers[0]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(packed_run, ([torch.randn(3, 256)], [], layer.number, [3, 96]), test_utils=tests)
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert layer(torch.empty(5, 256)).shape == (5, 96)


def test_a_copy_shares_the_packing() -> None:
    layers = model()
    optimize_(layers)
    x = torch.randn(2, 256)
    expected = layers(x)
    other = copy.deepcopy(layers)
    del layers
    assert torch.equal(other(x), expected)


def test_refusals() -> None:
    layers = model()
    with pytest.raises(ValueError, match="the layer is on meta, these kernels run on the CPU"):
        optimize_(copy.deepcopy(layers).to("meta"))
    optimize_(layers)
    with pytest.raises(ValueError, match="0 is packed for this machine and cannot be saved: load the model again"):
        layers.state_dict()
    with pytest.raises(ValueError, match="x has 128 features, the layer reads 256"):
        layers(torch.zeros(1, 128))


@pytest.mark.parametrize("rows", [1, 33])
def test_the_backend_packs_at_first_use_and_again_after_a_load(rows: int) -> None:
    assert "cpu" in available_backends()
    layers = model()
    x = torch.randn(rows, 256)
    with use_backend("cpu"):
        assert close(layers(x), model()(x))
        other = {name: value.clone() for name, value in layers.state_dict().items()}
        other["0.scale_zero"] = other["0.scale_zero"] - (1 << 24)
        layers.load_state_dict(other)
        found = layers(x)
    assert close(found, layers(x))
    assert not close(found, model()(x))
