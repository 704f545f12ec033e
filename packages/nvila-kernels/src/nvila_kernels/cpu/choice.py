"""Which kernels a layer gets: the fastest whose packed weights fit the memory that is allowed.

Decoding and prefill may use different kernels, if both packings fit together. Otherwise one serves both, the one that
takes least for a prompt of ``PROMPT`` rows and an answer of ``ANSWER`` tokens.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from nvila_kernels.cpu.candidates import candidates
from nvila_kernels.cpu.kernel import Kernel
from nvila_kernels.cpu.measurement import Measurement
from nvila_kernels.cpu.shape import PHASES, ROWS, Phase, Shape

ANSWER, PROMPT = 64, 512
CALLS: dict[Phase, float] = {"decode": ANSWER, "prefill": PROMPT / ROWS["prefill"]}
"""Runs of the measured size that a typical request makes."""
MEMORY = 1.2
"""Packed weights may take so many times the bytes of the layer's own."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The kernel of each phase, and what the packed weights take, in bytes."""

    kernels: dict[Phase, str]
    bytes: float


def layer_bytes(shape: Shape) -> float:
    """Of the layer as it is stored: codes, and a scale with its zero point for each group, or a scale a row."""
    return shape.n * shape.k * (0.5 + 4 / shape.group) if shape.group else shape.n * (shape.k + 4)


def choose(
    shape: Shape,
    found: Mapping[Phase, Mapping[str, Measurement]],
    *,
    memory: float = MEMORY,
    int8_activations: bool = True,
) -> Choice:
    """The fastest combination of measured kernels.

    Args:
        shape: of the layer; its rows do not matter.
        found: for each phase that the layer will see, what was measured.
        memory: packed weights may take so many times the layer's own bytes; ``math.inf`` for any number. Where nothing
            is that small, the smallest is taken.
        int8_activations: whether a 4-bit layer may round activations to 8 bits; those with 8-bit codes always do.

    Raises: ValueError if no kernel is left.
    """
    kernels = {
        name: kernel
        for name, kernel in candidates(shape.bits).items()
        if int8_activations or shape.bits == 8 or kernel.activations != "int8"
    }
    phases: list[Phase] = [phase for phase in PHASES if phase in found]
    usable = [[name for name in kernels if usable_(found[phase].get(name))] for phase in phases]
    priced = [
        Choice(kernels=dict(zip(phases, names, strict=True)), bytes=packed_bytes(names, kernels, shape))
        for names in product(*usable)
    ]
    if not priced:
        raise ValueError(nothing_left(shape, found))
    limit = max(memory * layer_bytes(shape), min(each.bytes for each in priced))
    fitting = [each for each in priced if each.bytes <= limit]
    return min(fitting, key=lambda each: (seconds(shape, each.kernels, found), each.bytes))


def choose_alike(
    shapes: Sequence[Shape],
    found: Mapping[Shape, Mapping[Phase, Mapping[str, Measurement]]],
    names: Sequence[str],
    *,
    saved: float,
    memory: float = MEMORY,
    int8_activations: bool = True,
) -> str | None:
    """One kernel for several layers, if that costs no more than it saves; None if it does.

    Args:
        shapes: of the layers.
        found: for each shape and both phases, what was measured.
        names: the kernels that it can be.
        saved: seconds that are saved at every call of all layers.
        memory, int8_activations: as for ``choose``, which finds what each layer would have by itself.
    """
    alone = 0.0
    for shape in shapes:
        own = choose(shape, found[shape], memory=memory, int8_activations=int8_activations)
        alone += seconds(shape, own.kernels, found[shape])
    costs: dict[str, float] = {}
    for name in names:
        if not int8_activations and candidates(4)[name].activations == "int8":
            continue
        if all(usable_(measured.get(name)) for shape in shapes for measured in found[shape].values()):
            costs[name] = sum(seconds(shape, dict.fromkeys(PHASES, name), found[shape]) for shape in shapes)
    limit = alone + saved * sum(CALLS.values())
    best = min(costs, key=costs.__getitem__, default=None)
    return best if best is not None and costs[best] <= limit else None


def usable_(measurement: Measurement | None) -> bool:
    return measurement is not None and measurement.refused is None and measurement.seconds is not None


def packed_bytes(names: Sequence[str], kernels: Mapping[str, Kernel], shape: Shape) -> float:
    """Of the packings of some kernels, one that is named twice counted once."""
    return sum(kernels[name].bytes(shape.n, shape.k, shape.group) for name in set(names))


def seconds(shape: Shape, kernels: Mapping[Phase, str], found: Mapping[Phase, Mapping[str, Measurement]]) -> float:
    """Of a typical request. Not all outputs are measured; more take proportionally longer."""
    return sum(
        CALLS[phase] * (found[phase][name].seconds or math.inf) * shape.n / shape.at(phase).measured.n
        for phase, name in kernels.items()
    )


def nothing_left(shape: Shape, found: Mapping[Phase, Mapping[str, Measurement]]) -> str:
    reasons = {f"{name}: {each.refused}" for phase in found.values() for name, each in phase.items() if each.refused}
    return (
        f"no kernel can multiply {shape} here ({'; '.join(sorted(reasons))}): allow int8 activations, or use the "
        "reference backend"
    )
