"""Time tiles on the GPU that is here, and keep the fastest of each problem.

The candidates vary what the checked-in tile fixes: columns, depth of the pipeline, warps, the split of K. What cannot
fit into shared memory is never tried; what does not compile, or differs from the reference backend by more than
rounding, is refused. The checked-in tile is the first candidate, so that tuning never chooses one slower than it.
"""
# pyright: basic
# Triton carries no usable types.

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, TypeAlias

import torch
import triton
from torch import Tensor
from triton.errors import TritonError

from nvila_kernels import reference
from nvila_kernels.pack import BLOCK, blocks, pack_scale_zero
from nvila_kernels.quantization import padded_features
from nvila_kernels.triton.byte_product import multiply_bytes
from nvila_kernels.triton.tiles import DECODE_ROWS, MANY, SHARED_LIMIT, Tile, architecture, nearest, splits, tile_of
from nvila_kernels.triton.timed_tiles import TABLES, Kernel, Problem, Timed, check
from nvila_kernels.triton.w4a16 import multiply_int4

MANY_ROWS = 1024
"""Rows that are timed for the last bucket, which has no bound: the tokens of one tile of an image."""

TOLERANCE = 5e-3
"""How large ``|y - y'| / |y|`` may be, ``y`` being the reference backend's; rounding to bfloat16 gives a fifth."""

DTYPE = torch.bfloat16
"""Of the activations that are timed."""

Run: TypeAlias = Callable[[], Tensor]
Timer: TypeAlias = Callable[[Run], float]
"""Seconds of one call."""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What became of one candidate: its time, or why it was refused."""

    tile: Tile
    seconds: float | None = None
    refused: str | None = None


def gpu_timer(run: Run) -> float:
    """The median of some 20 ms of calls, the cache of the GPU emptied between them."""
    milliseconds: Any = triton.testing.do_bench(run, warmup=5, rep=20, return_mode="median")
    return milliseconds / 1e3


def problems(layers: Iterable[tuple[Kernel, int, int]], device: torch.device) -> list[Problem]:
    """Every bucket of each layer, given as kernel, inputs and outputs; equal ones once."""
    found = [
        Problem(kernel=kernel, most=most, k=blocks(k) * BLOCK, n=n)
        for kernel, k, n in layers
        for most in TABLES[kernel][nearest(architecture(device))]
    ]
    return list(dict.fromkeys(found))


def candidates(problem: Problem, arch: int) -> list[Tile]:
    """The checked-in tile, and all others that are worth a try on an architecture."""
    table = tile_of(TABLES[problem.kernel], arch, problem.most)
    others = int4_tiles(problem, table, arch) if problem.kernel == "w4a16" else int8_tiles(problem, table)
    return list(dict.fromkeys([table, *(t for t in others if shared_bytes(problem, t) <= SHARED_LIMIT[nearest(arch)])]))


def int4_tiles(problem: Problem, table: Tile, arch: int) -> Iterator[Tile]:
    """Decode: columns, warps, stages, and half or twice the usual split. Prefill: both sides, warps, stages."""
    if problem.most <= DECODE_ROWS:
        for columns, warps, stages in product((64, 128), (2, 4), (3, 4, 5)):
            usual = splits(arch, triton.cdiv(problem.n, columns), problem.k // BLOCK)
            for split in sorted({max(usual // 2, 1), usual, usual * 2}):
                yield replace(table, block_n=columns, warps=warps, stages=stages, split=split)
        return
    rows = (64, 128) if problem.most == MANY else (table.block_m,)
    for block_m, columns, warps, stages in product(rows, (64, 128), (4, 8), (2, 3, 4)):
        yield replace(table, block_m=block_m, block_n=columns, warps=warps, stages=stages)


def int8_tiles(problem: Problem, table: Tile) -> Iterator[Tile]:
    """Both sides, depth, warps, stages; one product or two halves as the table has it."""
    rows = (64, 128, 256) if problem.most == MANY else (table.block_m,)
    for block_m, columns, depth, warps, stages in product(rows, (128, 256), (64, 128), (4, 8), (3, 4)):
        if block_m * columns <= 128 * 256:
            yield replace(table, block_m=block_m, block_n=columns, block_k=depth, warps=warps, stages=stages)


def shared_bytes(problem: Problem, tile: Tile) -> int:
    """What the pipeline of a tile keeps in shared memory."""
    if problem.kernel == "w4a16":
        stage = BLOCK * tile.block_m * DTYPE.itemsize + (BLOCK // 2 + 4) * tile.block_n
    else:
        stage = (tile.block_m + tile.block_n) * tile.block_k
    return stage * tile.stages


def operands(problem: Problem, device: torch.device) -> tuple[Callable[[Tile], Tensor], Tensor]:
    """The problem's kernel on random operands, by tile, and the result of the reference backend."""
    generator = torch.Generator(device).manual_seed(0)
    rows, k, n = min(problem.most, MANY_ROWS), problem.k, problem.n
    if problem.kernel == "w4a16":
        x = torch.randn(rows, k, generator=generator, device=device).to(DTYPE)
        words = torch.randint(-32768, 32768, (k // BLOCK, n, 32), generator=generator, device=device)
        scale = torch.rand(n, k // BLOCK, generator=generator, device=device).to(torch.float16)
        steps = pack_scale_zero(scale, torch.full_like(scale, 8).to(torch.uint8), in_features=k, group_size=BLOCK)
        group = BLOCK if k > BLOCK else 0
        four = (x, words.to(torch.int16), steps, None, group, torch.float16, False)
        return lambda tile: multiply_int4(*four, tile), reference.w4a16_linear(*four)
    k = padded_features(k)
    x, weight = (
        torch.randint(-127, 128, (size, k), generator=generator, device=device).to(torch.int8) for size in (rows, n)
    )
    x_scale, weight_scale = (torch.rand(size, generator=generator, device=device) for size in (rows, n))
    eight = (x, x_scale, weight, weight_scale, None)
    out = x.new_empty((rows, n), dtype=DTYPE)
    return lambda tile: multiply_bytes(*eight, out, tile), reference.int8_linear(*eight, False, DTYPE)


def attempt(run: Callable[[Tile], Tensor], exact: Tensor, tile: Tile, timer: Timer) -> Attempt:
    """Run one candidate, compare it, time it."""
    try:
        out = run(tile)
    except TritonError as error:
        return Attempt(tile=tile, refused=str(error).strip().partition("\n")[0])
    error = float(((out.float() - exact.float()).square().sum() / exact.float().square().sum()).sqrt())
    if not error <= TOLERANCE:
        return Attempt(tile=tile, refused=f"its error of {error:.2g} exceeds {TOLERANCE}")
    return Attempt(tile=tile, seconds=timer(lambda: run(tile)))


def attempts(problem: Problem, device: torch.device, timer: Timer = gpu_timer) -> list[Attempt]:
    """Every candidate of one problem, the checked-in tile first."""
    run, exact = operands(problem, device)
    return [attempt(run, exact, tile, timer) for tile in candidates(problem, architecture(device))]


def fastest(problem: Problem, tried: list[Attempt]) -> Timed:
    """The fastest of the attempts at one problem, the first of which is the checked-in tile.

    Raises: ValueError if none ran.
    """
    ran = [(each.seconds, number) for number, each in enumerate(tried) if each.seconds is not None]
    if not ran:
        raise ValueError(f"no tile of {problem} runs on this GPU ({tried[0].refused}): use the reference backend")
    seconds, number = min(ran)
    check(problem, tried[number].tile)
    return Timed(tile=tried[number].tile, seconds=seconds, table_seconds=tried[0].seconds)
