"""This package's own product with 4-bit weights, which numba compiles for the processor (``jit``)."""

from typing import cast

import torch

from nvila_kernels.cpu.compiled import layout
from nvila_kernels.cpu.kernel import Codes, Kernel, Run
from nvila_kernels.quantization import Int4Codes


def missing() -> str | None:
    """Why nothing can be compiled here; None if it can."""
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return "there are compiled products for processors with AVX2 only"
    try:
        import numba  # noqa: F401  # pyright: ignore
    except ImportError as error:  # it is absent, or older than the numpy that is here
        return f"numba cannot be imported ({error}): pip install 'nvila-kernels[cpu]'"
    return None


def pack(codes: Codes) -> Run:
    return run_of(layout.pack(cast(Int4Codes, codes)))


def run_of(weight: layout.Weight) -> Run:
    """The product with a packed weight."""
    from nvila_kernels.cpu.compiled.product import Product  # and with it numba, which takes most of a second

    return Product(weight)


NUMBA_INT8 = Kernel(name="numba int8", bits=4, activations="int8", bytes=layout.size, pack=pack, missing=missing)
