"""Which of the processor's vector instructions a product uses."""

# pyright: basic
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from llvmlite import binding

from nvila_kernels.cpu.machine import INSTRUCTIONS


@dataclass(frozen=True, kw_only=True)
class Instructions:
    """A way to sum products of unsigned and signed bytes.

    Attributes:
        name: shown to people.
        needs: LLVM's names of what the processor must have.
        lanes: sums of 32 bits in a vector.
        dots: whether one instruction sums four products; otherwise there are sums of 16 bits in between.
        octets: of inputs whose products are summed before anything is stored. In 16 bits four octets have room: two
            products of 15 and 127 make a sum, and eight of those 30,480.
        rows: of a tile where there are many.
        vectors: of outputs in such a tile.
        alone: vectors of outputs in a tile of one row.
    """

    name: str
    needs: tuple[str, ...]
    lanes: int
    dots: bool
    octets: int
    rows: int
    vectors: int
    alone: int


BASE = ("avx2", "fma", "f16c")
KINDS = (
    Instructions(
        name="AVX-512 VNNI",
        needs=(*BASE, "avx512f", "avx512vnni"),
        lanes=16,
        dots=True,
        octets=2,
        rows=4,
        vectors=4,
        alone=4,
    ),
    Instructions(name="AVX-VNNI", needs=(*BASE, "avxvnni"), lanes=8, dots=True, octets=2, rows=4, vectors=2, alone=8),
    Instructions(name="AVX2", needs=BASE, lanes=8, dots=False, octets=4, rows=4, vectors=2, alone=8),
)
"""The best first."""


def best(features: Mapping[str, bool], only: str | None = None) -> Instructions | None:
    """The best kind that a processor with these features has; None if it has none.

    Args:
        features: by LLVM's names.
        only: the name of a kind to use instead.

    Raises: ValueError for the name of a kind that it has not.
    """
    found = [kind for kind in KINDS if all(features.get(name) for name in kind.needs)]
    if not only:
        return next(iter(found), None)
    named = [kind for kind in found if kind.name == only]
    if not named:
        names = ", ".join(kind.name for kind in found) or "none of those that are known"
        raise ValueError(f"{INSTRUCTIONS} is {only!r}, this processor has {names}: name one of them, or leave it out")
    return named[0]


@cache
def here() -> Instructions | None:
    """What this processor has, or what ``$NVILA_KERNELS_INSTRUCTIONS`` says."""
    return best(binding.get_host_cpu_features(), os.environ.get(INSTRUCTIONS))
