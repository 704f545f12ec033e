"""The CPU backend: kernels of well-kept libraries, chosen by measurement.

Which kernel is fastest differs by shape and by machine: decoding and prefill want different ones, and instructions
for integers or bfloat16 turn the order around. So every candidate is timed once on each shape (``measurement``), held
against the reference backend, and remembered (``cache``); ``choose`` takes the fastest that fits in memory, and
``optimize_`` gives a model's layers to them.

Holds one function an operation, with the signatures of ``nvila_kernels.reference``. Those that multiply by a weight
pack it at its first use and keep that beside the layer's own; ``optimize_`` lets go of the latter.
"""

from nvila_kernels.cpu.candidates import candidates
from nvila_kernels.cpu.kernel import Kernel
from nvila_kernels.cpu.machine import machine
from nvila_kernels.cpu.measurement import Measurement, measure
from nvila_kernels.cpu.operations import int8_linear, w4a16_linear
from nvila_kernels.cpu.packed_linear import OptimizedLayer, PackedLinear, PackedModule, optimize_
from nvila_kernels.cpu.selection import KernelChoice, choose
from nvila_kernels.cpu.shape import Shape
from nvila_kernels.cpu.timings_file import Timings, cache_file, timings
from nvila_kernels.reference import (
    amax,
    cast_fp8,
    cast_fp8_amax,
    cast_fp8_rows,
    cast_fp8_transposed,
    dequantize,
    fp8_linear,
    gelu_quantize,
    int8_linear_requantize,
    layer_norm_quantize,
    quantize_rows,
    quantize_static,
)

__all__ = [
    "Kernel",
    "KernelChoice",
    "Measurement",
    "OptimizedLayer",
    "PackedLinear",
    "PackedModule",
    "Shape",
    "Timings",
    "amax",
    "cache_file",
    "candidates",
    "cast_fp8",
    "cast_fp8_amax",
    "cast_fp8_rows",
    "cast_fp8_transposed",
    "choose",
    "dequantize",
    "fp8_linear",
    "gelu_quantize",
    "int8_linear",
    "int8_linear_requantize",
    "layer_norm_quantize",
    "machine",
    "measure",
    "optimize_",
    "quantize_rows",
    "quantize_static",
    "timings",
    "w4a16_linear",
]
