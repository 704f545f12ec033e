"""FP8: rounding against hand-computed values, products against float64, bytes counted, the engine against a stub."""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from nvila_model.network import Block, RMSNorm, rotary_angles
from nvila_train import fp8
from nvila_train.fp8.engine import engine
from nvila_train.fp8.linear import Rounding
from nvila_train.fp8.numbers import E4M3, E5M2, PRODUCTS, shrink
from nvila_train.fp8.stored import stored
from nvila_train.recipe import Recipe, recipe_path
from nvila_train.run import run
from nvila_train.trainer.loop import train
from nvila_train.trainer.precision import Precision, computing
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode


def error(found: Tensor, true: Tensor) -> float:
    """Relative to the true matrix, in the mean square."""
    return float((found.double() - true).norm() / true.norm())


def test_rounding_by_hand():
    """The largest value becomes 448; of a mantissa of three bits, 0.3 of it, 134.4, lies between 128 and 144."""
    small = shrink(torch.tensor([[1.0, 0.3, -0.5, 0.0]]), E4M3)
    assert float(small.scale) == pytest.approx(1 / 448)
    assert small.values.float().tolist() == [[448.0, 128.0, -224.0, 0.0]]
    by_row = shrink(torch.tensor([[1.0, 0.5], [1e-3, 2e-3]]), E5M2, rows=True)
    assert by_row.values.float().tolist() == [[57344.0, 28672.0], [28672.0, 57344.0]]
    assert not shrink(torch.zeros(2, 2), E4M3).large(torch.float32).any()


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("shape", [(7, 48, 32), (16, 21, 16), (1, 16, 16)])
@pytest.mark.parametrize("backend", PRODUCTS)
def test_products_against_float64(backend: str, rows: bool, shape: tuple[int, int, int]):
    torch.manual_seed(0)
    m, k, n = shape
    a, b = shrink(torch.randn(m, k), E4M3, rows=rows), shrink(torch.randn(n, k), E5M2, rows=rows)
    true = (a.values.double() * a.scale) @ (b.values.double() * b.scale).T
    torch.testing.assert_close(PRODUCTS[backend](a, b, torch.float32).double(), true, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "precision",
    [
        Precision("fp8"),
        Precision("fp8", scaling="delayed"),
        Precision("fp8", granularity="row"),
        Precision("fp8", store=False),
        Precision("fp8", granularity="row", store=False),
        Precision("fp8", backend="nvila"),
        Precision("fp8", backend="nvila", scaling="delayed"),
        Precision("fp8", backend="nvila", granularity="row"),
    ],
    ids=lambda each: f"{each.scaling}-{each.granularity}-{each.store}-{each.backend}",
)
def test_gradients_of_a_layer_are_near_those_in_float64(precision: Precision):
    torch.manual_seed(0)
    layer = nn.Linear(64, 48)
    x = torch.randn(3, 11, 64, requires_grad=True)
    target = torch.randn(3, 11, 48)
    with fp8.training(layer, precision):
        for _ in range(2):  # the second call has a history
            x.grad = layer.weight.grad = layer.bias.grad = None
            found = layer(x)
            found.backward(target)
    assert x.grad is not None
    assert layer.weight.grad is not None
    weight, true_x, dy = layer.weight.double().detach(), x.double().detach(), target.double()
    assert error(found.detach(), true_x @ weight.T + layer.bias.double().detach()) < 0.05
    assert error(x.grad, dy @ weight) < 0.1
    assert error(layer.weight.grad, dy.flatten(0, 1).T @ true_x.flatten(0, 1)) < 0.1
    torch.testing.assert_close(layer.bias.grad, target.sum((0, 1)))
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight, layer.bias)), "outside it is as it was"


class Halves:
    """A task on one layer that stops before a step."""

    def __init__(self, module: nn.Module, *, stop: int) -> None:
        self.module, self.stop = module, stop

    def batch(self, step: int, rank: int, world: int) -> Tensor:
        if step == self.stop:
            raise KeyboardInterrupt
        return torch.randn(4, 32, generator=torch.Generator().manual_seed(step)) * (1 + step)

    def loss(self, batch: Tensor) -> tuple[Tensor, int, dict[str, float]]:
        return self.module(batch).square().sum(), len(batch), {}


def test_delayed_scaling_goes_on_where_it_stopped(tmp_path: Path):
    """Each batch is larger than the one before, so factors from other calls give other losses."""
    curves: list[str] = []
    for name, stops in (("whole", [6]), ("parts", [3, 6])):
        for stop in stops:
            torch.manual_seed(0)
            layer = nn.Linear(32, 16)
            groups = [{"params": list(layer.parameters()), "lr": 1e-2}]
            with suppress(KeyboardInterrupt):
                train(Halves(layer, stop=stop), layer, groups=groups, steps=6, folder=tmp_path / name, log_every=1,
                      save_every=1, precision=Precision("fp8", scaling="delayed", history=3))  # fmt: skip
        lines = (tmp_path / name / "log.jsonl").read_text().splitlines()
        curves.append(str([json.loads(line)["loss"] for line in lines]))
    assert curves[0] == curves[1]


def test_delayed_scaling_looks_back():
    rounding = Rounding(Precision("fp8", scaling="delayed", history=2))
    smalls = [rounding("x", torch.tensor([[value]])) for value in (1.0, 5.0, 2.0, 1.0)]
    assert [float(small.scale) * 448 for small in smalls] == pytest.approx([1.0, 1.0, 5.0, 5.0])
    assert float(smalls[1].large(torch.float32)) == 1.0, "what outgrows its factor is cut"


class InFloat32(Halves):
    """The same with a loss that is summed in float32."""

    def loss(self, batch: Tensor) -> tuple[Tensor, int, dict[str, float]]:
        return (self.module(batch).float() - batch.flip(-1)[:, :16]).square().mean(), 1, {}


@pytest.mark.parametrize("scaling", ["current", "delayed"])
def test_both_backends_learn_alike(scaling: Any, tmp_path: Path):
    """One history of scales for both, and the same codes: losses differ by the rounding of sums to bfloat16."""
    losses: list[list[float]] = []
    for backend in ("torch", "nvila"):
        torch.manual_seed(0)
        layer = nn.Sequential(nn.Linear(32, 64), nn.GELU("tanh"), nn.Linear(64, 16))
        groups = [{"params": list(layer.parameters()), "lr": 1e-2}]
        precision = Precision("fp8", scaling=scaling, history=3, backend=backend)
        train(InFloat32(layer, stop=-1), layer, groups=groups, steps=12, folder=tmp_path / backend, log_every=1,
              save_every=12, precision=precision)  # fmt: skip
        lines = (tmp_path / backend / "log.jsonl").read_text().splitlines()
        losses.append([json.loads(line)["loss"] for line in lines])
    assert losses[1] == pytest.approx(losses[0], rel=2e-2)
    assert losses[0][-1] != losses[0][0]


def test_a_weight_that_is_rounded_again_is_not_a_new_value():
    torch.manual_seed(0)
    weight = torch.randn(5, 7)
    for precision in (Precision("fp8"), Precision("fp8", scaling="delayed"), Precision("fp8", granularity="row")):
        rounding = Rounding(precision)
        first = rounding("weight", weight)
        across = rounding.again(weight)
        assert across.values.shape == (7, 5)
        assert across.values.is_contiguous()
        assert error(across.large(torch.float32), weight.T.double()) < 0.04
        if not rounding.rows:
            assert torch.equal(across.values.T.float(), first.values.float())
        casts = [int((scale.history >= 0).sum()) for scale in rounding.histories.values()]
        assert casts in ([], [0, 1, 0])


def test_delayed_scaling_of_zeros_is_not_a_number_out_of_range():
    rounding = Rounding(Precision("fp8", scaling="delayed", history=3))
    found = [rounding("gradient", torch.full((2, 3), value)).large(torch.float32) for value in (0.0, 0.5, 0.5)]
    assert [each[0, 0].item() for each in found] == [0.0, 0.5, 0.5]


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@pytest.mark.parametrize("rows", [False, True])
def test_bfloat16_is_rounded_once(dtype: torch.dtype, rows: bool):
    """To the nearest eight-bit number of the quotient in float64, ties and the reciprocal's last bit aside."""
    torch.manual_seed(0)
    matrix = torch.randn(64, 33).bfloat16()
    small = shrink(matrix, dtype, rows=rows)
    numbers = torch.arange(256, dtype=torch.uint8).view(dtype).double()
    numbers = numbers[numbers.isfinite()].unique()
    quotient = matrix.double() / small.scale.double()
    distance = (quotient[..., None] - numbers).abs().amin(-1)
    off = (small.values.double() - quotient).abs() - distance
    assert off.max() <= 1e-6 * quotient.abs().max()


@pytest.mark.parametrize(
    "precision",
    [Precision("fp8"), Precision("fp8", scaling="delayed"), Precision("fp8", backend="nvila")],
    ids=lambda each: f"{each.scaling}-{each.backend}",
)
def test_the_casts_are_the_kernels(precision: Precision):
    """What a GPU does in one pass is asked of ``nvila_kernels``, forward and backward."""
    seen: set[str] = set()

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.add(func.name())
            return func(*args, **(kwargs or {}))

    layer = nn.Linear(32, 16)
    with Seen(), fp8.training(layer, precision):
        layer(torch.ones(4, 32, requires_grad=True)).sum().backward()
    casts = {name.removeprefix("nvila_kernels::") for name in seen if name.startswith("nvila_kernels::")}
    products = {"fp8_linear"} if precision.backend == "nvila" else set()
    cast = "cast_fp8" if precision.scaling == "current" else "cast_fp8_amax"
    assert casts == {"amax", "cast_fp8_transposed", cast} | products


@pytest.mark.parametrize(
    "layer", [RMSNorm(32, eps=1e-6), nn.LayerNorm(32), nn.GELU("tanh")], ids=lambda m: type(m).__name__
)
def test_a_stored_function_is_exact_forward_and_near_backward(layer: nn.Module):
    torch.manual_seed(0)
    x = torch.randn(5, 32, requires_grad=True)
    gradient = torch.randn(5, 32)
    true = layer(x)
    wanted = torch.autograd.grad(true, [x, *layer.parameters()], gradient)
    found = stored(layer, x, parameters=tuple(layer.parameters()))
    assert torch.equal(found, true)
    for mine, theirs in zip(torch.autograd.grad(found, [x, *layer.parameters()], gradient), wanted, strict=True):
        assert error(mine, theirs.double()) < 0.06


@contextmanager
def counted(weights: nn.Module) -> Iterator[Callable[[], int]]:
    """Bytes that are saved for the backward pass, each storage once, without the weights'."""
    own = {parameter.untyped_storage()._cdata for parameter in weights.parameters()}
    found: dict[int, tuple[int, Tensor]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            found[storage._cdata] = storage.nbytes(), tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield lambda: sum(size for size, _ in found.values())


def saved_by_a_block(precision: Precision, *, recomputed: bool = False, tokens: int = 4096) -> int:
    """Bytes that one block of the 8B model saves for 4096 tokens, on tensors without memory."""
    with FakeTensorMode():
        block = Block(3584, heads=28, kv_heads=4, head_dim=128, mlp_width=18944, eps=1e-6)
        x = torch.randn(1, tokens, 3584, dtype=torch.bfloat16, requires_grad=True)
        angles = rotary_angles(torch.arange(tokens)[None], head_dim=128, theta=1e6, factor=1.0, dtype=x.dtype)
        with fp8.training(block, precision, recomputed=recomputed), counted(block) as size:
            block(x, angles, None, None, 0)
            return size()


@pytest.fixture
def in_bfloat16() -> Iterator[None]:
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("in_bfloat16")
def test_a_block_of_the_8b_model_saves_about_half():
    large = saved_by_a_block(Precision("bf16"))
    for precision in (Precision("fp8"), Precision("fp8", granularity="row")):
        assert saved_by_a_block(precision) <= 0.55 * large
    assert saved_by_a_block(Precision("fp8"), recomputed=True) > 0.9 * large, (
        "under recomputation nothing is rounded to keep"
    )


def test_a_block_learns_the_same_way():
    """Gradients of a whole block under autocast, against float32."""
    torch.manual_seed(0)
    block = Block(64, heads=4, kv_heads=2, head_dim=16, mlp_width=96, eps=1e-6)
    x, gradient = torch.randn(2, 9, 64), torch.randn(2, 9, 64)
    angles = rotary_angles(torch.arange(9)[None], head_dim=16, theta=1e4, factor=1.0, dtype=x.dtype)
    grads = []
    for name in ("fp32", "fp8"):
        block.zero_grad()
        with fp8.training(block, name), computing(name):
            out = block(x, angles, None, None, 0)
        out.backward(gradient.to(out.dtype))
        grads.append(
            torch.cat([parameter.grad.flatten() for parameter in block.parameters() if parameter.grad is not None])
        )
    assert error(grads[1], grads[0].double()) < 0.12


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "fp4"}, "no precision 'fp4': choose from fp32, bf16, fp8"),
        ({"name": "fp8", "scaling": "delayed", "granularity": "row"}, "use 'current' by row"),
        ({"name": "fp8", "backend": "cublas"}, "no backend 'cublas' for fp8: choose 'torch' or 'nvila'"),
        ({"name": "fp8", "history": 0}, "history 0 looks back at nothing"),
    ],
)
def test_precisions_that_do_not_exist(fields: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        Precision(**fields)


class StubLinear(nn.Module):
    """What is used of ``transformer_engine.pytorch.Linear``."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool, params_dtype: torch.dtype, device: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs, dtype=params_dtype, device=device))
        self.bias = nn.Parameter(torch.empty(outputs, dtype=params_dtype, device=device)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        assert Stub.inside, "outside of fp8_autocast it would compute in bfloat16"
        return nn.functional.linear(x, self.weight, self.bias)


class Stub:
    inside: list[Any] = []  # noqa: RUF012


@contextmanager
def stub_autocast(*, enabled: bool, fp8_recipe: Any) -> Iterator[None]:
    assert enabled
    Stub.inside.append(fp8_recipe)
    yield
    Stub.last = Stub.inside.pop()


@pytest.fixture
def transformer_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    library, recipe = ModuleType("transformer_engine.pytorch"), ModuleType("transformer_engine.common.recipe")
    library.Linear, library.fp8_autocast = StubLinear, stub_autocast  # pyright: ignore
    recipe.Format = SimpleNamespace(HYBRID="hybrid")  # pyright: ignore
    recipe.DelayedScaling = lambda **given: ("delayed", given)  # pyright: ignore
    recipe.Float8CurrentScaling = lambda **given: ("current", given)  # pyright: ignore
    for name, module in (("transformer_engine.pytorch", library), ("transformer_engine.common.recipe", recipe)):
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("transformer_engine", "transformer_engine.common"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))


@pytest.mark.parametrize("scaling", ["current", "delayed"])
@pytest.mark.usefixtures("transformer_engine")
def test_the_engine_computes_with_our_weights(monkeypatch: pytest.MonkeyPatch, scaling: Any):
    monkeypatch.setattr(fp8, "engine", lambda device: sys.modules["transformer_engine.pytorch"])
    layer = nn.Linear(32, 16)
    with fp8.training(layer, Precision("fp8", scaling=scaling, backend="nvila")):
        assert layer(torch.ones(2, 32)).dtype == torch.float32, "our kernels were asked for: outside of fp8_autocast"
    names = set(layer.state_dict())
    with fp8.training(layer, Precision("fp8", scaling=scaling, history=7)):
        layer(torch.ones(2, 32)).sum().backward()
        assert set(layer.state_dict()) == names
    assert layer.weight.grad is not None
    torch.testing.assert_close(layer.weight.grad, torch.full((16, 32), 2.0))
    kind, given = Stub.last
    assert kind == scaling
    assert given["fp8_format"] == "hybrid"
    assert given.get("amax_history_len", 7) == 7
    with (
        pytest.raises(ValueError, match="has no factor for each row"),
        fp8.training(layer, Precision("fp8", granularity="row")),
    ):
        pass


def test_the_engine_is_for_hopper(monkeypatch: pytest.MonkeyPatch, transformer_engine: None):
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert engine(gpu) is sys.modules["transformer_engine.pytorch"]
    assert engine(torch.device("cpu")) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    assert engine(gpu) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (10, 0))
    monkeypatch.setitem(sys.modules, "transformer_engine.pytorch", None)
    assert engine(gpu) is None


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain-language", "pretrain-vision"])
def test_nano_learns_as_in_float32(tmp_path: Path, stage: str):
    """500 steps of nano's own stages from random weights: every mean over a hundred of them is within 1 %."""
    whole = Recipe.read(recipe_path("nano"))
    (chosen,) = (each.model_copy(update={"steps": 500}) for each in whole.stage if each.name == stage)
    means: dict[str, list[float]] = {}
    for name in ("fp32", "fp8"):
        run(whole.model_copy(update={"stage": (chosen,), "precision": Precision(name)}), tmp_path / name)
        log = (tmp_path / name / f"1-{stage}" / "log.jsonl").read_text().splitlines()
        losses = [json.loads(line)["loss"] for line in log]
        hundred = 100 // whole.log_every
        means[name] = [sum(losses[at : at + hundred]) / hundred for at in range(0, len(losses), hundred)]
    assert len(means["fp8"]) == 5
    assert means["fp8"][-1] < 0.8 * means["fp8"][0]
    assert means["fp8"] == pytest.approx(means["fp32"], rel=0.01)
