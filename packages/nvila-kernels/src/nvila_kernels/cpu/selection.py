"""Which kernels a layer gets: the fastest whose packed weights fit the memory that is allowed.

Decoding and prefill may use different kernels, if both packings fit together. Otherwise one serves both, the one that
takes least for a prompt of ``PROMPT`` rows and an answer of ``ANSWER`` tokens. Where nobody says how much memory that
may take, a whole model is packed a second time only if there is room and prompts are read ``FASTER`` times as fast.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from operator import itemgetter
from typing import TypeAlias

from nvila_kernels.cpu.candidates import candidates
from nvila_kernels.cpu.kernel import Kernel
from nvila_kernels.cpu.measurement import Measurement
from nvila_kernels.cpu.shape import PHASES, ROWS, Phase, Shape

ANSWER, PROMPT = 64, 512
CALLS: dict[Phase, float] = {"decode": ANSWER, "prefill": PROMPT / ROWS["prefill"]}
"""Runs of the measured size that a typical request makes."""
MEMORY = 1.2
"""Packed weights may take so many times the bytes of the layer's own."""
ROOM, FASTER = 0.25, 2.5
"""Where nobody says how much: all packings may take this part of the machine's memory if prompts gain that much."""


@dataclass(frozen=True, kw_only=True)
class KernelChoice:
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
) -> KernelChoice:
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
        KernelChoice(kernels=dict(zip(phases, names, strict=True)), bytes=packed_bytes(names, kernels, shape))
        for names in product(*usable)
    ]
    if not priced:
        raise ValueError(nothing_left(shape, found))
    limit = max(memory * layer_bytes(shape), min(each.bytes for each in priced))
    fitting = [each for each in priced if each.bytes <= limit]
    return min(fitting, key=lambda each: (seconds(shape, each.kernels, found), each.bytes))


@dataclass(frozen=True, kw_only=True)
class Alike:
    """One kernel for several layers, and for each shape another that reads prompts; none where the one reads them."""

    kernel: str
    prompts: Mapping[Shape, str]


Found: TypeAlias = Mapping[Shape, Mapping[Phase, Mapping[str, Measurement]]]
"""For each shape and phase, what was measured."""


def choose_alike(
    shapes: Sequence[Shape],
    found: Found,
    names: Sequence[str],
    *,
    saved: float,
    whole: Mapping[str, float] | None = None,
    memory: float = MEMORY,
    int8_activations: bool = True,
) -> Alike | None:
    """One kernel for several layers, if that costs no more than it saves; None if it does.

    Args:
        shapes: of the layers.
        found: for each shape and both phases.
        names: the kernels that it can be.
        saved: seconds that are saved at every call of all layers; prompts that have kernels of their own save nothing.
        whole: more kernels that it can be, which read prompts themselves; and the seconds that each saves at a token.
        memory, int8_activations: as for ``choose``, which finds what each layer would have by itself.
    """
    alone = 0.0
    for shape in shapes:
        own = choose(shape, found[shape], memory=memory, int8_activations=int8_activations)
        alone += seconds(shape, own.kernels, found[shape])
    costs: list[tuple[float, Alike]] = []
    whole = whole or {}
    for name in (*names, *whole):
        if not int8_activations and candidates(4)[name].activations == "int8":
            continue
        if not all(usable_(measured.get(name)) for shape in shapes for measured in found[shape].values()):
            continue
        one = sum(seconds(shape, dict.fromkeys(PHASES, name), found[shape]) for shape in shapes)
        gained = whole[name] * CALLS["decode"] if name in whole else saved * sum(CALLS.values())
        costs.append((one - gained, Alike(kernel=name, prompts={})))
        if name in whole:
            continue
        readers = prompt_kernels(shapes, found, name, names, memory=memory, int8_activations=int8_activations)
        if readers:
            two = sum(seconds(shape, {"decode": name}, found[shape]) for shape in shapes)
            two += sum(seconds(shape, {"prefill": readers[shape]}, found[shape]) for shape in shapes)
            costs.append((two - saved * CALLS["decode"], Alike(kernel=name, prompts=readers)))
    least, best = min(costs, key=itemgetter(0), default=(math.inf, None))
    return best if least <= alone else None


def prompt_kernels(
    shapes: Sequence[Shape],
    found: Found,
    beside: str,
    names: Sequence[str],
    *,
    memory: float,
    int8_activations: bool = True,
) -> dict[Shape, str]:
    """The fastest for prompts that fits into memory beside another, for each shape; empty if one shape has none."""
    chosen: dict[Shape, str] = {}
    kernels = candidates(4)
    for shape in shapes:
        measured = found[shape]["prefill"]
        fitting = [
            name
            for name, kernel in kernels.items()
            if name not in names
            and (int8_activations or kernel.activations != "int8")
            and usable_(measured.get(name))
            and packed_bytes((beside, name), kernels, shape) <= memory * layer_bytes(shape)
        ]
        if not fitting:
            return {}
        chosen[shape] = min(fitting, key=lambda name: measured[name].seconds or math.inf)
    return chosen


def pays_twice(
    shapes: Sequence[Shape], found: Found, alike: Alike, machine_memory: float, *, int8_activations: bool = True
) -> bool:
    """Whether weights are packed a second time where nobody says: it fits, and prompts are read so much faster.

    Args:
        shapes: of the layers.
        found: for each shape and both phases.
        alike: what is chosen where memory does not matter.
        machine_memory: bytes.
        int8_activations: whether what it is held against may have them.
    """
    if not alike.prompts:
        return False
    kernels = candidates(4)
    packed = sum(packed_bytes((alike.kernel, alike.prompts[shape]), kernels, shape) for shape in shapes)
    one = two = 0.0
    for shape in shapes:
        prompts: dict[Phase, Mapping[str, Measurement]] = {"prefill": found[shape]["prefill"]}
        small = choose(shape, prompts, int8_activations=int8_activations)
        one += seconds(shape, small.kernels, prompts)
        two += seconds(shape, {"prefill": alike.prompts[shape]}, prompts)
    return packed <= ROOM * machine_memory and one >= FASTER * two


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
