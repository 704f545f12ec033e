"""Quantized linear algebra: W4A16, W8A8 and FP8 on GPU and CPU.

Three layers: ``ops`` (``torch.library``) -> ``functional`` -> ``modules``; on top of them ``quantize`` and
``calibrate`` for whole models. Importing needs neither a GPU nor triton.
"""

from nvila_kernels.backends import available_backends, use_backend
from nvila_kernels.calibrate import awq_scales, smooth_scales
from nvila_kernels.delayed_scale import DelayedScale
from nvila_kernels.functional import cast_fp8, cast_fp8_transposed, fp8_linear, w4a16_linear, w8a8_linear
from nvila_kernels.modules import Int4Linear, Int8Linear
from nvila_kernels.pack import pack_int4, unpack_int4
from nvila_kernels.policy import W4A16, W8A8, QuantPolicy
from nvila_kernels.quantize import quantize_
from nvila_kernels.saving import load_quantized, save_quantized

__all__ = [
    "W4A16",
    "W8A8",
    "DelayedScale",
    "Int4Linear",
    "Int8Linear",
    "QuantPolicy",
    "available_backends",
    "awq_scales",
    "cast_fp8",
    "cast_fp8_transposed",
    "fp8_linear",
    "load_quantized",
    "pack_int4",
    "quantize_",
    "save_quantized",
    "smooth_scales",
    "unpack_int4",
    "use_backend",
    "w4a16_linear",
    "w8a8_linear",
]
