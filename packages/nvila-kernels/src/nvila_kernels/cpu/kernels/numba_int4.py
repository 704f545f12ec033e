"""This package's own product with 4-bit weights, which numba compiles for the processor (``compiled``)."""

from importlib.util import find_spec
from typing import cast

import torch

from nvila_kernels.cpu.arena import Arena
from nvila_kernels.cpu.compiled import layout
from nvila_kernels.cpu.kernels.kernel import Codes, Kernel, Run
from nvila_kernels.quantization import Int4Codes


def missing() -> str | None:
    """Why nothing can be compiled here; None if it can, as far as that shows before it is tried."""
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return "there are compiled products for processors with AVX2 only"
    absent = [name for name in ("numba", "llvmlite") if find_spec(name) is None]
    return f"{' and '.join(absent)} not installed: pip install 'nvila-kernels[cpu]'" if absent else None


def pack(codes: Codes, arena: Arena) -> Run:
    from nvila_kernels.cpu.compiled.product import Product  # and with it llvmlite

    return Product(layout.pack(cast(Int4Codes, codes), arena))


NUMBA_INT8 = Kernel(name="numba int8", bits=4, activations="int8", bytes=layout.size, pack=pack, missing=missing)
