"""The GPU backend: kernels (``w4a16``, ``product``, ``rows``, ``fp8``), their tiles (``configurations``) and their
launchers.

Holds one function an operation, with the signatures of ``nvila_kernels.reference``. Imported when a GPU asks for it.
"""

from nvila_kernels.reference import dequantize
from nvila_kernels.triton.fp8_launch import (
    amax,
    cast_fp8,
    cast_fp8_amax,
    cast_fp8_rows,
    cast_fp8_transposed,
    fp8_linear,
)
from nvila_kernels.triton.w4a16_launch import w4a16_linear
from nvila_kernels.triton.w8a8_launch import (
    gelu_quantize,
    int8_linear,
    int8_linear_requantize,
    layer_norm_quantize,
    quantize_rows,
    quantize_static,
)

__all__ = [
    "amax",
    "cast_fp8",
    "cast_fp8_amax",
    "cast_fp8_rows",
    "cast_fp8_transposed",
    "dequantize",
    "fp8_linear",
    "gelu_quantize",
    "int8_linear",
    "int8_linear_requantize",
    "layer_norm_quantize",
    "quantize_rows",
    "quantize_static",
    "w4a16_linear",
]
