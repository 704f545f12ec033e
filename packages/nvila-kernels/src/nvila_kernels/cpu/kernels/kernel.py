"""What a kernel must say of itself to be a candidate."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

from nvila_kernels.cpu.arena import Arena
from nvila_kernels.quantization import Int4Codes, Int8Codes

Codes: TypeAlias = Int4Codes | Int8Codes
Run: TypeAlias = Callable[[Tensor], Tensor]
"""The product with one packed weight, without bias: contiguous float32 ``[m, k]`` -> float32 ``[m, n]``."""
Pack: TypeAlias = Callable[[Codes, Arena], Run]
"""Takes a weight over; those that lay out memory themselves take it from the arena."""

Activations: TypeAlias = Literal["float32", "bfloat16", "int8"]

TOLERANCE: dict[Activations, float] = {"float32": 1e-4, "bfloat16": 1e-2, "int8": 2e-2}
"""How large ``|y - y'| / |y|`` may be, ``y`` being the reference backend's, by what the activations are rounded to."""


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """A product with quantized weights that is done well on some machines.

    Attributes:
        name: shown in reports, and the key in the file of timings.
        bits: of the codes that it takes, 4 or 8.
        activations: what it rounds them to.
        bytes: of a weight once packed, by outputs, inputs and group size.
        pack: may raise RuntimeError or ValueError where the library cannot hold a weight.
        missing: why it cannot be used here, such as a package to install; None if it can.
    """

    name: str
    bits: Literal[4, 8]
    activations: Activations
    bytes: Callable[[int, int, int], float]
    pack: Pack
    missing: Callable[[], str | None] = lambda: None


def bits_of(codes: Codes) -> Literal[4, 8]:
    """Bits of one code."""
    return 4 if isinstance(codes, Int4Codes) else 8
