"""Quantized linear algebra: W4A16, W8A8 and FP8 on GPU and CPU.

Three layers: ``ops`` (``torch.library``) -> ``functional`` -> ``modules``. Importing needs neither a GPU nor
triton.
"""

from nvila_kernels.backends import available_backends, use_backend
from nvila_kernels.functional import cast_fp8, w4a16_linear, w8a8_linear
from nvila_kernels.modules import Int4Linear, Int8Linear
from nvila_kernels.pack import pack_int4, unpack_int4

__all__ = [
    "Int4Linear",
    "Int8Linear",
    "available_backends",
    "cast_fp8",
    "pack_int4",
    "unpack_int4",
    "use_backend",
    "w4a16_linear",
    "w8a8_linear",
]
