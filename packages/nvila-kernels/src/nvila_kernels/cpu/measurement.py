"""Time a kernel on a shape and hold it against the reference backend.

Weights have left the processor's cache since the last token, and torch's threads have just worked for the layer before:
a sweep through memory before each run makes both so. The best of a few runs counts: other programs only ever make a
run longer.
"""

import warnings
from dataclasses import dataclass, replace
from functools import cache
from time import perf_counter

import torch
from torch import Tensor
from torch.nn import functional as F

from nvila_kernels import reference
from nvila_kernels.cpu.arena import Arena
from nvila_kernels.cpu.kernels.kernel import TOLERANCE, Codes, Kernel, Run
from nvila_kernels.cpu.shape import Shape
from nvila_kernels.quantization import Int4Codes, Int8Codes, dequantize_int4, quantize_int4, quantize_int8

RUNS = 5
FEWEST, HOPELESS = 2, 5.0
"""A kernel that after so many runs takes this many times the best so far is not run again."""
CLOSE = 3.0
"""Those that take at most so many times the best run again in turns: what disturbs a few runs in a row disturbs all."""
SWEEP = 128 * 2**20
"""Bytes that are read to empty the cache."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What became of one candidate.

    Attributes:
        seconds: of the best run; None if it was not run.
        error: ``|y - y'| / |y|`` against the reference backend; None if it was not run.
        refused: why it may not be chosen; None if it may.
        lasting: whether that will be so tomorrow; a full disk may not be.
    """

    seconds: float | None = None
    error: float | None = None
    refused: str | None = None
    lasting: bool = True


def sample(shape: Shape) -> tuple[Codes, Tensor, Tensor]:
    """A random weight and activations of a shape, always the same, and the product by the reference backend."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape.rows, shape.k, generator=generator)
    weight = torch.randn(shape.n, shape.k, generator=generator)
    if shape.group:
        codes: Codes = quantize_int4(weight, group_size=shape.group)
    else:
        made = quantize_int8(weight)
        codes = Int8Codes(codes=made[0], scale=made[1])
    return codes, x, expected(codes, x)


def expected(codes: Codes, x: Tensor) -> Tensor:
    """The product as the reference backend has it."""
    if isinstance(codes, Int4Codes):
        return F.linear(x, dequantize_int4(codes))
    rows, scale = quantize_int8(x)
    return reference.int8_linear(rows, scale, codes.codes, codes.scale, None, False, torch.float32)


@torch.inference_mode()
def measure(kernels: dict[str, Kernel], shape: Shape) -> dict[str, Measurement]:
    """Every kernel on the shape, by name."""
    codes, x, exact = sample(shape)
    best = float("inf")
    found: dict[str, Measurement] = {}
    close: dict[str, Run] = {}
    for name, kernel in kernels.items():
        found[name], run = measure_one(kernel, codes, x, exact, best)
        if run is not None:
            best = min(best, found[name].seconds or best)
            close[name] = run
        close = {each: run for each, run in close.items() if (found[each].seconds or 0) <= CLOSE * best}
    for _ in range(RUNS):
        for name, run in close.items():
            found[name] = replace(found[name], seconds=min(timed(run, x), found[name].seconds or best))
    other_memory.cache_clear()
    return found


def measure_one(kernel: Kernel, codes: Codes, x: Tensor, exact: Tensor, best: float) -> tuple[Measurement, Run | None]:
    """One kernel, and what runs it if it ran and was right."""
    if reason := kernel.missing():
        return Measurement(refused=reason), None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run = kernel.pack(codes, Arena())
            out = run(x)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        return Measurement(refused=reason, lasting=not isinstance(error, OSError)), None
    error = float(((out - exact).square().sum() / exact.square().sum()).sqrt())
    seconds = float("inf")
    for done in range(RUNS):
        if done >= FEWEST and seconds > HOPELESS * best:
            break
        seconds = min(seconds, timed(run, x))
    limit = TOLERANCE[kernel.activations]
    wrong = f"its error of {error:.2g} exceeds {limit:.2g}" if not error <= limit else None
    return Measurement(seconds=seconds, error=error, refused=wrong), None if wrong else run


def timed(run: Run, x: Tensor) -> float:
    """Seconds of one run, its weight in memory and not in the cache."""
    sweep()
    started = perf_counter()
    run(x)
    return perf_counter() - started


@cache
def other_memory() -> Tensor:
    return torch.ones(SWEEP // 4)


def sweep() -> None:
    """Push everything else out of the processor's cache."""
    other_memory().sum()
