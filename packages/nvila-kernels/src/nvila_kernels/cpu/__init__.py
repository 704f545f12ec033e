"""The CPU backend: kernels of well-kept libraries and one of its own, chosen by measurement.

Which kernel is fastest differs by shape and by machine: decoding and prefill want different ones, and instructions
for integers or bfloat16 turn the order around. So every candidate is timed once on each shape (``measurement``), held
against the reference backend, and remembered (``timings_file``); ``choose`` takes the fastest that fits in memory, and
``optimize_`` gives a model's layers to them.

``optimize_`` is the fast way: a weight has to be packed before it is fast, and an operation by itself has nowhere to
keep a packing. So the functions that stand here for the operations are those of ``nvila_kernels.reference``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nvila_kernels.cpu.arena import Arena
from nvila_kernels.cpu.kernels.candidates import candidates
from nvila_kernels.cpu.kernels.kernel import Kernel
from nvila_kernels.cpu.machine import machine
from nvila_kernels.cpu.measurement import Measurement, measure
from nvila_kernels.cpu.memory import give_back, large_blocks_returned
from nvila_kernels.cpu.packed_linear import (
    OptimizedLayer,
    PackedLinear,
    PackedWeight,
    compiled_choice,
    fastest,
    optimize_,
    pack_layer,
    refuse_devices,
    refuse_training,
    shape_of,
)
from nvila_kernels.cpu.selection import KernelChoice, choose, layer_bytes
from nvila_kernels.cpu.shape import Shape
from nvila_kernels.cpu.timings_file import Timings, cache_file, timings
from nvila_kernels.cpu.weight_copy import packed_copy
from nvila_kernels.reference import (
    amax,
    cast_fp8,
    cast_fp8_amax,
    cast_fp8_rows,
    cast_fp8_transposed,
    dequantize,
    fp8_linear,
    gelu_quantize,
    int8_linear,
    int8_linear_requantize,
    layer_norm_quantize,
    quantize_rows,
    quantize_static,
    w4a16_linear,
)

if TYPE_CHECKING:
    from nvila_kernels.cpu.compiled.decoder import DecoderBlocks, DecoderBuffers, token_program
    from nvila_kernels.cpu.compiled.threads import ThreadTeam, thread_team

COMPILED = {
    "DecoderBlocks": "decoder",
    "DecoderBuffers": "decoder",
    "ThreadTeam": "threads",
    "thread_team": "threads",
    "token_program": "decoder",
}
"""Names of modules that import a compiler, which is loaded when one of them is asked for."""


def __getattr__(name: str) -> Any:
    if name in COMPILED:
        return getattr(import_module(f"nvila_kernels.cpu.compiled.{COMPILED[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *COMPILED})


__all__ = [
    "Arena",
    "DecoderBlocks",
    "DecoderBuffers",
    "Kernel",
    "KernelChoice",
    "Measurement",
    "OptimizedLayer",
    "PackedLinear",
    "PackedWeight",
    "Shape",
    "ThreadTeam",
    "Timings",
    "amax",
    "cache_file",
    "candidates",
    "cast_fp8",
    "cast_fp8_amax",
    "cast_fp8_rows",
    "cast_fp8_transposed",
    "choose",
    "compiled_choice",
    "dequantize",
    "fastest",
    "fp8_linear",
    "gelu_quantize",
    "give_back",
    "int8_linear",
    "int8_linear_requantize",
    "large_blocks_returned",
    "layer_bytes",
    "layer_norm_quantize",
    "machine",
    "measure",
    "optimize_",
    "pack_layer",
    "packed_copy",
    "quantize_rows",
    "quantize_static",
    "refuse_devices",
    "refuse_training",
    "shape_of",
    "thread_team",
    "timings",
    "token_program",
    "w4a16_linear",
]
