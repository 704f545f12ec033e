"""The ops as torch sees them: opcheck, torch.compile, export with a dynamic number of rows, fake CUDA
tensors.
"""

import importlib
import inspect
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import nvila_kernels
import pytest
import torch
from nvila_kernels import Int4Linear, Int8Linear, cast_fp8, ops
from nvila_kernels.signatures import OPERATIONS
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

INT4 = Int4Linear.from_linear(nn.Linear(256, 40), group_size=64)
INT8 = Int8Linear.from_linear(nn.Linear(256, 40))
CODES = (torch.zeros(3, 256, dtype=torch.int8), torch.ones(3), INT8.weight, INT8.weight_scale, INT8.bias)
FP16, E4M3 = torch.float16, torch.float8_e4m3fn
E4M3_CODES = torch.randn(3, 200).to(E4M3)

CALLS: list[tuple[Any, tuple[Any, ...]]] = [
    (ops.dequantize, (INT4.packed, INT4.scale_zero, 256, 64, FP16, torch.float32)),
    (
        ops.w4a16_linear,
        (torch.randn(3, 256), INT4.packed, INT4.scale_zero, INT4.bias, 64, FP16, False),
    ),
    (
        ops.w4a16_linear,
        (torch.randn(3, 256, requires_grad=True), INT4.packed, INT4.scale_zero, None, 64, FP16, False),
    ),
    (ops.quantize_rows, (torch.randn(3, 200),)),
    (ops.quantize_static, (torch.randn(3, 200), torch.ones(1))),
    (ops.gelu_quantize, (torch.randn(3, 200),)),
    (ops.layer_norm_quantize, (torch.randn(3, 200), torch.ones(200), torch.zeros(200), 1e-6)),
    (ops.int8_linear, (*CODES, True, FP16)),
    (ops.int8_linear_requantize, (*CODES, False, torch.ones(1))),
    (ops.amax, (torch.randn(3, 200),)),
]
FP8_CALLS: list[tuple[Any, tuple[Any, ...]]] = [
    (ops.cast_fp8, (torch.randn(3, 200), torch.ones(1), E4M3)),
    (ops.cast_fp8_amax, (torch.randn(3, 200), torch.ones(1), E4M3)),
    (ops.cast_fp8_rows, (torch.randn(3, 200), E4M3)),
    (ops.cast_fp8_transposed, (torch.randn(3, 200), torch.ones(1), E4M3)),
]
FP8_PRODUCT = (ops.fp8_linear, (E4M3_CODES, torch.ones(3), E4M3_CODES[:2], torch.ones(1), torch.ones(2), FP16))


def name_of(call: tuple[Any, tuple[Any, ...]]) -> str:
    return call[0]._qualname.split("::")[1]


# opcheck itself reads .grad of a tensor that it cloned.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("call", CALLS, ids=name_of)
def test_opcheck(call: tuple[Any, tuple[Any, ...]]) -> None:
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(*call, test_utils=tests)


@pytest.mark.parametrize("call", FP8_CALLS, ids=name_of)
def test_opcheck_fp8(call: tuple[Any, tuple[Any, ...]]) -> None:
    # test_aot_dispatch_dynamic compares with torch.testing.assert_close, which cannot subtract float8.
    torch.library.opcheck(*call, test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))


def test_opcheck_of_a_product_of_codes() -> None:
    # test_schema compares arguments before and after with arithmetic that torch lacks for float8.
    torch.library.opcheck(*FP8_PRODUCT, test_utils=("test_autograd_registration", "test_faketensor"))


ONE, WEIGHT8 = torch.ones(1), torch.randn(40, 256).to(E4M3)

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "Int4Linear": lambda x: INT4(x[None])[0],
    "Int8Linear": lambda x: INT8(x[None])[0],
    "cast_fp8": lambda x: cast_fp8(x)[0].float(),
    "cast_fp8_amax": lambda x: ops.cast_fp8_amax(x, ONE, E4M3)[1],
    "cast_fp8_rows": lambda x: cast_fp8(x, by_row=True)[0].float(),
    "cast_fp8_transposed": lambda x: ops.cast_fp8_transposed(x, ONE, E4M3).float(),
    "fp8_linear": lambda x: ops.fp8_linear(*ops.cast_fp8_rows(x, E4M3), WEIGHT8, ONE, None, FP16),
    "quantize_static": lambda x: ops.quantize_static(x, ONE),
    "gelu_quantize": lambda x: ops.gelu_quantize(x)[0],
    "layer_norm_quantize": lambda x: ops.layer_norm_quantize(x, torch.ones(256), torch.zeros(256), 1e-6)[0],
    "int8_linear_requantize": lambda x: ops.int8_linear_requantize(
        *ops.quantize_rows(x), INT8.weight, INT8.weight_scale, INT8.bias, True, ONE
    ),
    "dequantize": lambda x: x @ ops.dequantize(INT4.packed, INT4.scale_zero, 256, 64, FP16, x.dtype).T,
}
"""Every operation at least once, after a matrix of any number of rows and 256 columns."""


class Applied(nn.Module):
    """A function as a module, which is what export takes."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiles_whole_with_any_number_of_rows(name: str) -> None:
    torch.compiler.reset()
    compiled = torch.compile(FUNCTIONS[name], fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (2, 5, 16):
        x = torch.randn(rows, 256)
        assert torch.equal(compiled(x), FUNCTIONS[name](x))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_exports_with_dynamic_rows(name: str) -> None:
    rows = torch.export.Dim("rows", min=2, max=4096)
    program = torch.export.export(Applied(FUNCTIONS[name]), (torch.randn(8, 256),), dynamic_shapes=({0: rows},))
    x = torch.randn(37, 256)
    assert torch.equal(program.module()(x), FUNCTIONS[name](x))


@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
def test_a_backend_has_every_operation_with_the_same_arguments(backend: str) -> None:
    if backend == "triton":
        pytest.importorskip("triton")
    functions = importlib.import_module(f"nvila_kernels.{backend}")
    for name, signature in OPERATIONS.items():
        assert inspect.signature(getattr(functions, name)) == inspect.signature(signature), name


def test_every_operation_is_compiled_and_exported() -> None:
    names: set[str] = set()
    for function in FUNCTIONS.values():
        program = torch.export.export(Applied(function), (torch.randn(8, 256),))
        names |= {str(node.target).split(".")[1] for node in program.graph.nodes if "nvila_kernels" in str(node.target)}
    assert names == OPERATIONS.keys() == {name_of(call) for call in [*CALLS, *FP8_CALLS, FP8_PRODUCT]}


@pytest.mark.parametrize("call", [*CALLS, *FP8_CALLS, FP8_PRODUCT], ids=name_of)
def test_fake_cuda_tensors(call: tuple[Any, tuple[Any, ...]]) -> None:
    op, arguments = call
    with FakeTensorMode(allow_non_fake_inputs=True):
        moved = [torch.empty(a.shape, dtype=a.dtype, device="cuda") if isinstance(a, Tensor) else a for a in arguments]
        results = op(*moved)
    real = op(*arguments)
    pairs = zip(results, real, strict=True) if isinstance(real, tuple) else [(results, real)]
    for fake, computed in pairs:
        assert fake.device.type == "cuda"
        assert fake.shape == computed.shape
        assert fake.dtype == computed.dtype


def test_the_public_names() -> None:
    assert all(hasattr(nvila_kernels, name) for name in nvila_kernels.__all__)


def test_importing_needs_neither_a_gpu_nor_triton() -> None:
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "import torch\n"
        "def refuse(): raise SystemExit('CUDA was touched at import')\n"
        "torch.cuda._lazy_init = refuse\n"
        "import nvila_kernels\n"
        "layer = nvila_kernels.Int4Linear(64, 4)\n"
        "assert layer(torch.zeros(1, 64)).shape == (1, 4)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
