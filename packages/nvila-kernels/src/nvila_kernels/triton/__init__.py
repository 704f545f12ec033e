"""The GPU backend: one function an operation, as ``signatures`` has it, and the tiles that they run in.

``w4a16``, ``w8a8`` and ``fp8`` hold kernels and their launches. Imported when a GPU asks for it; needs triton.
"""

from nvila_kernels.reference import dequantize
from nvila_kernels.triton.fp8 import (
    amax,
    cast_fp8,
    cast_fp8_amax,
    cast_fp8_rows,
    cast_fp8_transposed,
    fp8_linear,
)
from nvila_kernels.triton.tiles import AMD, MANY, Tile
from nvila_kernels.triton.timed_tiles import (
    TABLES,
    Cards,
    Kernel,
    card,
    read_tiles,
    tiles_file,
    write_tiles,
)
from nvila_kernels.triton.timing import attempts, fastest, problems
from nvila_kernels.triton.w4a16 import w4a16_linear
from nvila_kernels.triton.w8a8 import (
    gelu_quantize,
    int8_linear,
    int8_linear_requantize,
    layer_norm_quantize,
    quantize_rows,
    quantize_static,
)

__all__ = [
    "AMD",
    "MANY",
    "TABLES",
    "Cards",
    "Kernel",
    "Tile",
    "amax",
    "attempts",
    "card",
    "cast_fp8",
    "cast_fp8_amax",
    "cast_fp8_rows",
    "cast_fp8_transposed",
    "dequantize",
    "fastest",
    "fp8_linear",
    "gelu_quantize",
    "int8_linear",
    "int8_linear_requantize",
    "layer_norm_quantize",
    "problems",
    "quantize_rows",
    "quantize_static",
    "read_tiles",
    "tiles_file",
    "w4a16_linear",
    "write_tiles",
]
