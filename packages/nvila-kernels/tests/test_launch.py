"""What a launch does on a GPU, as far as fake CUDA tensors show: every launcher runs without looking at a value, so
that a CUDA graph can record it, and asks for the same kernels and grids each time.
"""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from nvila_kernels.cpu.folder import FOLDER
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed on this platform", allow_module_level=True)

from nvila_kernels import triton as kernels
from nvila_kernels.triton import timed_tiles
from nvila_kernels.triton.tiles import architecture
from triton.runtime.jit import JITFunction

FP16, FP32, INT8, E4M3 = torch.float16, torch.float32, torch.int8, torch.float8_e4m3fn

Launches = list[tuple[Any, ...]]


def made(*shape: int, dtype: torch.dtype = FP16) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="cuda")


def int4(rows: int, *, half: bool = False) -> Tensor:
    packed, steps = made(12, 1000, 32, dtype=torch.int16), made(12, 1000, dtype=torch.int32)
    return kernels.w4a16_linear(made(rows, 1500), packed, steps, made(1000), 128, FP16, half)


def codes(rows: int) -> tuple[Tensor, ...]:
    x, weight = made(rows, 4352, dtype=INT8), made(1152, 4352, dtype=INT8)
    return x, made(rows, dtype=FP32), weight, made(1152, dtype=FP32), made(1152)


def float8() -> tuple[Tensor, ...]:
    one = made(1, dtype=FP32)
    return made(5, 200, dtype=E4M3), one, made(40, 200, dtype=E4M3), one


CALLS: dict[str, tuple[Callable[[], Any], str, list[tuple[int, ...]]]] = {
    "decode": (lambda: int4(3), "decode sum_splits", [(3, 1000)]),
    "decode in float16": (lambda: int4(16, half=True), "decode sum_splits", [(16, 1000)]),
    "prefill": (lambda: int4(40), "prefill", [(40, 1000)]),
    "no rows": (lambda: int4(0), "", [(0, 1000)]),
    "quantize_rows": (lambda: kernels.quantize_rows(made(5, 4304)), "quantize_rows_kernel", [(5, 4352), (5,)]),
    "gelu_quantize": (lambda: kernels.gelu_quantize(made(5, 4304)), "quantize_rows_kernel", [(5, 4352), (5,)]),
    "layer_norm_quantize": (
        lambda: kernels.layer_norm_quantize(made(5, 1152), made(1152), made(1152), 1e-6),
        "layer_norm_quantize_kernel",
        [(5, 1152), (5,)],
    ),
    "quantize_static": (
        lambda: kernels.quantize_static(made(5, 4304), made(1, dtype=FP32)),
        "quantize_static_kernel",
        [(5, 4352)],
    ),
    "int8_linear": (lambda: kernels.int8_linear(*codes(70), True, FP16), "byte_product", [(70, 1152)]),
    "int8_linear_requantize": (
        lambda: kernels.int8_linear_requantize(*codes(7), False, made(1, dtype=FP32)),
        "byte_product",
        [(7, 1152)],
    ),
    "cast_fp8": (lambda: kernels.cast_fp8(made(5, 200), made(1, dtype=FP32), E4M3), "cast", [(5, 200)]),
    "cast_fp8_amax": (
        lambda: kernels.cast_fp8_amax(made(5, 200), made(1, dtype=FP32), E4M3),
        "cast",
        [(5, 200), (1,)],
    ),
    "cast_fp8_rows": (lambda: kernels.cast_fp8_rows(made(5, 200), E4M3), "cast_rows", [(5, 200), (5,)]),
    "cast_fp8_transposed": (
        lambda: kernels.cast_fp8_transposed(made(5, 200), made(1, dtype=FP32), E4M3),
        "cast_transposed",
        [(200, 5)],
    ),
    "amax": (lambda: kernels.amax(made(5, 200)), "block_amax", [(1,)]),
    "fp8_linear": (lambda: kernels.fp8_linear(*float8(), None, FP16), "byte_product", [(5, 40)]),
}
"""By name: a call, the kernels that it launches on sm_90, and the shapes of its results."""


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Launches]:
    """Launches are noted instead of made, on a card of compute capability 9.0 whose user never timed_tiles."""
    noted: Launches = []

    def note(self: JITFunction[Any], *arguments: Any, grid: tuple[int, ...], warmup: bool, **options: Any) -> None:
        numbers = [each for each in arguments if not isinstance(each, Tensor)]
        noted.append((self.fn.__name__, grid, *numbers, *sorted((k, str(v)) for k, v in options.items())))

    def refuse(*_: Any) -> None:
        raise AssertionError("a launch waited for the GPU")

    monkeypatch.setattr(JITFunction, "run", note)
    monkeypatch.setattr(torch.cuda, "synchronize", refuse)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setenv(FOLDER, str(tmp_path))
    forget()
    yield noted
    forget()


def forget() -> None:
    for function in (architecture, timed_tiles.timed_here, timed_tiles.tile_of_bucket):
        function.cache_clear()


@pytest.mark.parametrize("name", CALLS)
def test_no_launcher_looks_at_a_value(name: str, launches: Launches) -> None:
    """Fake tensors have no values: whatever asks for one (``item``, a mask, a shape that depends on data) raises."""
    call, names, shapes = CALLS[name]
    with FakeTensorMode():
        results = call()
        first = list(launches)
        call()
    results = results if isinstance(results, tuple) else (results,)
    assert [tuple(each.shape) for each in results] == shapes
    assert {each.device.type for each in results} == {"cuda"}
    assert [each[0] for each in first] == names.split()
    assert launches == first * 2
    assert all(type(side) is int for each in first for side in each[1])


def test_before_sm_89_float8_runs_on_the_reference(launches: Launches, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 6))
    forget()
    with FakeTensorMode():
        for name in ("cast_fp8", "cast_fp8_amax", "cast_fp8_rows", "cast_fp8_transposed", "fp8_linear"):
            CALLS[name][0]()
    assert {each[0] for each in launches} <= {"block_amax"}


def test_amd_has_tiles_of_its_own(launches: Launches, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its numbers look like NVIDIA's: gfx942 says 9.4."""
    monkeypatch.setattr(torch.version, "hip", "7.1")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 4))
    forget()
    with FakeTensorMode():
        CALLS["int8_linear"][0]()
        CALLS["cast_fp8"][0]()
    (product,) = launches
    assert ("HALVES", "True") in product
    assert ("BLOCK_N", "128") in product
