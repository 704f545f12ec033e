"""Quantized weights in other people's files: read them all, write the two that are read most widely.

A format turns the tensors of one linear layer into plain codes (``Int4Codes``, ``Int8Codes``) and back; the modules
take it from there. ``format_of`` finds the format of a checkpoint.
"""

from nvila_kernels.formats.autoawq import AwqGemm, AwqGemv
from nvila_kernels.formats.compressed_tensors import IntQuantized, PackQuantized, mixed_config
from nvila_kernels.formats.detect import format_of, formats_of
from nvila_kernels.formats.gptq import Gptq
from nvila_kernels.formats.layer import FormatError, LayerFormat, WritableFormat
from nvila_kernels.formats.tinychat import TinyChat

__all__ = [
    "AwqGemm",
    "AwqGemv",
    "FormatError",
    "Gptq",
    "IntQuantized",
    "LayerFormat",
    "PackQuantized",
    "TinyChat",
    "WritableFormat",
    "format_of",
    "formats_of",
    "mixed_config",
]
