"""Which kernel a layer gets: the fastest whose packed weight takes at most a byte for each weight.

One kernel serves tokens and prompts, the one that takes least for a prompt of ``PROMPT`` rows and an answer of
``ANSWER`` tokens.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from nvila_kernels.cpu.kernels.candidates import candidates
from nvila_kernels.cpu.kernels.kernel import Kernel
from nvila_kernels.cpu.measurement import Measurement
from nvila_kernels.cpu.shape import ROWS, Phase, Shape

ANSWER, PROMPT = 64, 512
CALLS: dict[Phase, float] = {"decode": ANSWER, "prefill": PROMPT / ROWS["prefill"]}
"""Runs of the measured size that a typical request makes."""

Found: TypeAlias = Mapping[Phase, Mapping[str, Measurement]]
"""For each phase that a layer will see, what was measured, by kernel."""


@dataclass(frozen=True, kw_only=True)
class KernelChoice:
    """The kernel of a layer, and what the packed weight takes, in bytes."""

    kernel: str
    bytes: float


def layer_bytes(shape: Shape) -> float:
    """Of the layer as it is stored: codes, and a scale with its zero point for each group, or a scale a row."""
    return shape.n * shape.k * (0.5 + 4 / shape.group) if shape.group else byte_each(shape)


def byte_each(shape: Shape) -> float:
    """A byte for each weight, and a scale for each row."""
    return shape.n * (shape.k + 4.0)


def choose(shape: Shape, found: Found, *, int8_activations: bool = True, smallest: bool = False) -> KernelChoice:
    """The fastest of the kernels that were measured.

    Args:
        shape: of the layer; its rows do not matter.
        found: for each phase that the layer will see, what was measured.
        int8_activations: whether a 4-bit layer may round activations to 8 bits; those with 8-bit codes always do.
        smallest: take the one that takes least memory. So it is where none takes at most a byte for each weight.

    Raises: ValueError if no kernel is left.
    """
    kernels = {
        name: kernel
        for name, kernel in candidates(shape.bits).items()
        if (int8_activations or shape.bits == 8 or kernel.activations != "int8")
        and all(usable(measured.get(name)) for measured in found.values())
    }
    if not kernels:
        raise ValueError(none_left(shape, found))
    sizes = {name: packed_bytes(kernel, shape) for name, kernel in kernels.items()}
    limit = min(sizes.values()) if smallest else max(byte_each(shape), min(sizes.values()))
    fitting = [name for name in kernels if sizes[name] <= limit]
    best = min(fitting, key=lambda name: (seconds(shape, name, found), sizes[name]))
    return KernelChoice(kernel=best, bytes=sizes[best])


def usable(measurement: Measurement | None) -> bool:
    return measurement is not None and measurement.refused is None and measurement.seconds is not None


def packed_bytes(kernel: Kernel, shape: Shape) -> float:
    """Of a weight in the packing of a kernel."""
    return kernel.bytes(shape.n, shape.k, shape.group)


def seconds(shape: Shape, kernel: str, found: Found) -> float:
    """Of a typical request. Not all outputs are measured; more take proportionally longer."""
    return sum(
        CALLS[phase] * (measured[kernel].seconds or math.inf) * shape.n / shape.at(phase).measured.n
        for phase, measured in found.items()
    )


def none_left(shape: Shape, found: Found) -> str:
    reasons = {f"{name}: {each.refused}" for phase in found.values() for name, each in phase.items() if each.refused}
    return (
        f"no kernel can multiply {shape} here ({'; '.join(sorted(reasons))}): allow int8 activations, or use the "
        "reference backend"
    )
