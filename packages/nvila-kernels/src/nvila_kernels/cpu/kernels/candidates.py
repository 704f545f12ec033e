"""All kernels that a layer can be given to, by the bits of its codes."""

from typing import Literal

from nvila_kernels.cpu.kernels.dense import DENSE4
from nvila_kernels.cpu.kernels.int8 import FBGEMM4, FBGEMM8, FLOATS8, ONEDNN4, ONEDNN8
from nvila_kernels.cpu.kernels.kernel import Kernel
from nvila_kernels.cpu.kernels.numba_int4 import NUMBA_INT8
from nvila_kernels.cpu.kernels.torch_int4 import TORCH_INT4

CANDIDATES: tuple[Kernel, ...] = (NUMBA_INT8, TORCH_INT4, FBGEMM4, ONEDNN4, DENSE4, FBGEMM8, ONEDNN8, FLOATS8)


def candidates(bits: Literal[4, 8]) -> dict[str, Kernel]:
    """The kernels for codes of so many bits, by name."""
    return {kernel.name: kernel for kernel in CANDIDATES if kernel.bits == bits}
