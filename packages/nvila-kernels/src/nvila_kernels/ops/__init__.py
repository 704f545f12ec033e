"""The operations as ``torch.library`` ops under ``nvila_kernels::``, which autograd, ``torch.compile``, ``export`` and
fake tensors know.

Names, arguments and shapes are those of ``signatures``; the work is handed to the backend in force (``backends``).
Shapes are checked one layer up, in ``functional``. Results of ``quantize_*`` are padded with zeros to a multiple of
128 features.
"""

from nvila_kernels import signatures
from nvila_kernels.ops.gradient import add_gradient
from nvila_kernels.ops.register import register

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

dequantize = register(signatures.dequantize)
w4a16_linear = register(signatures.w4a16_linear)
add_gradient(w4a16_linear, dequantize)

quantize_rows = register(signatures.quantize_rows)
quantize_static = register(signatures.quantize_static)
gelu_quantize = register(signatures.gelu_quantize)
layer_norm_quantize = register(signatures.layer_norm_quantize)
int8_linear = register(signatures.int8_linear)
int8_linear_requantize = register(signatures.int8_linear_requantize)

amax = register(signatures.amax)
cast_fp8 = register(signatures.cast_fp8)
cast_fp8_rows = register(signatures.cast_fp8_rows)
cast_fp8_transposed = register(signatures.cast_fp8_transposed)
cast_fp8_amax = register(signatures.cast_fp8_amax)
fp8_linear = register(signatures.fp8_linear)
