"""The fused W8A8 blocks of the vision tower against the same layers one by one, on every backend."""

import copy
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from nvila_kernels import W8A8, Int8Linear, QuantPolicy, quantize_, use_backend
from nvila_kernels.calibrate import observe
from nvila_kernels.cpu import optimize_
from nvila_model import NVILA
from nvila_model.network import VisionTower
from nvila_model.quantization.blocks import quantize_model
from nvila_model.quantization.fused_blocks import FusedBlock, fuse_
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

PIXELS = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(1)) * 2 - 1
DYNAMIC = QuantPolicy((("*", W8A8()),))
STATIC = QuantPolicy((("*.fc2", W8A8(static=True)), ("*", W8A8())))


def tower(**changes: Any) -> VisionTower:
    """Odd widths on purpose: 72 and 100 are no multiples of 128."""
    torch.manual_seed(0)
    sizes = {"image_size": 28, "patch_size": 7, "width": 72, "layers": 2, "heads": 4, "mlp_width": 100}
    made = VisionTower(**sizes | changes).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made


def quantized(policy: QuantPolicy, **changes: Any) -> VisionTower:
    made = tower(**changes)
    quantize_(made.blocks, policy, observed=observe(made.blocks, lambda: made(PIXELS)))
    return made


def fused(policy: QuantPolicy, **changes: Any) -> VisionTower:
    made = quantized(policy, **changes)
    fuse_(made)
    assert all(type(block) is FusedBlock for block in made.blocks)
    return made


class Operations(TorchDispatchMode):
    """Counts the operations of ``nvila_kernels``."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        space, _, name = func.name().partition("::")
        if space == "nvila_kernels":
            self.counts[name] = self.counts.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def counted(model: VisionTower) -> dict[str, int]:
    with Operations() as operations:
        model(PIXELS)
    return operations.counts


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0))


def test_every_seam_is_one_kernel() -> None:
    each = {"layer_norm_quantize": 4, "quantize_rows": 2}
    assert counted(fused(DYNAMIC)) == each | {"gelu_quantize": 2, "int8_linear": 8}
    assert counted(fused(STATIC)) == each | {"int8_linear_requantize": 2, "int8_linear": 6}


@torch.no_grad()
@pytest.mark.parametrize("policy", [DYNAMIC, STATIC], ids=["dynamic", "static"])
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_fused_equals_layer_by_layer(policy: QuantPolicy, backend: str) -> None:
    expected = quantized(policy)(PIXELS)
    with use_backend(backend):
        found = fused(policy)(PIXELS)
    # A code at a tie may fall to either side.
    torch.testing.assert_close(found, expected, rtol=0, atol=0.01 * float(expected.abs().max()))
    assert cosine(found, tower()(PIXELS)) > 0.999


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_no_further_from_floats(dtype: torch.dtype) -> None:
    true = tower()(PIXELS)
    plain = cosine(quantized(DYNAMIC).to(dtype)(PIXELS), true)
    assert cosine(fused(DYNAMIC).to(dtype)(PIXELS), true) > plain - 2e-4


@torch.no_grad()
def test_what_cannot_be_fused_runs_layer_by_layer() -> None:
    exact = {"gelu": "none"}
    expected = quantized(DYNAMIC, **exact)(PIXELS)
    model = fused(DYNAMIC, **exact)
    assert "gelu_quantize" not in counted(model)
    torch.testing.assert_close(model(PIXELS), expected, rtol=0, atol=0.01 * float(expected.abs().max()))
    static = QuantPolicy((("*.attn.*", W8A8(static=True)), ("*.fc1", W8A8(static=True)), ("*", None)))
    expected = quantized(static)(PIXELS)
    assert torch.equal(fused(static)(PIXELS), expected)
    packed = fused(DYNAMIC)
    optimize_(packed, phases=("prefill",))
    assert not counted(packed).keys() & {"layer_norm_quantize", "gelu_quantize"}
    assert cosine(packed(PIXELS), tower()(PIXELS)) > 0.999


def test_a_float_tower_stays() -> None:
    model = tower()
    fuse_(model)
    assert not any(isinstance(block, FusedBlock) for block in model.blocks)


def test_names_and_files_stay(tmp_path: Path) -> None:
    model = NVILA.from_pretrained("nano")
    names = {name.rpartition(".")[0] for name in model.state_dict()}
    quantize_model(model, llm=None)
    assert type(model.vision.blocks[0]) is FusedBlock
    assert isinstance(model.vision.blocks[0].attn.qkv, Int8Linear)
    assert {name.rpartition(".")[0] for name in model.state_dict()} == names
    model.save_pretrained(str(tmp_path / "saved"))
    again = NVILA.from_pretrained(str(tmp_path / "saved"), optimize=False)
    assert type(again.vision.blocks[0]) is FusedBlock
    pixels = torch.rand(1, 3, again.vision.image_size, again.vision.image_size)
    assert torch.equal(again.vision(pixels), model.vision(pixels))
    assert type(copy.deepcopy(again).vision.blocks[0]) is FusedBlock


INTERPRETED = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from test_fused_blocks import DYNAMIC, PIXELS, STATIC, fused
from nvila_kernels import use_backend
with torch.no_grad():
    for policy in (DYNAMIC, STATIC):
        model = fused(policy).to(torch.float16)
        with use_backend("reference"):
            expected = model(PIXELS)
        with use_backend("triton"):
            found = model(PIXELS)
        torch.testing.assert_close(found, expected, rtol=0, atol=0.02 * float(expected.abs().max()))
print("equal")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed on this platform")
def test_triton_computes_the_same() -> None:
    """In the interpreter, which must be chosen before triton is imported."""
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", INTERPRETED, str(Path(__file__).parent)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stdout.strip() == "equal", run.stderr
