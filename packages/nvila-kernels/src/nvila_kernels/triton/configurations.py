"""Which tile each kernel uses, by architecture and number of rows: a table, so that nothing is tuned at first call.

Provisional: chosen by reading compiled code, not by timing, since no GPU was at hand, and the script that prints those
readings is not here yet. An architecture is ten times its capability,
89 for 8.9; one that the table lacks uses the newest entry below it.
"""

from dataclasses import dataclass

ARCHITECTURES = (80, 86, 87, 89, 90, 100, 120)
"""Those that the tables were read on."""

SHARED_LIMIT = {80: 166912, 86: 101376, 87: 166912, 89: 101376, 90: 232448, 100: 232448, 120: 101376}
"""Bytes of shared memory that one block may use (CUDA programming guide, table of compute capabilities)."""

PROCESSORS = {80: 108, 86: 82, 87: 16, 89: 128, 90: 132, 100: 148, 120: 170}
"""Multiprocessors of the largest common card of each architecture: A100, 3090, Orin, 4090, H100, B200, 5090."""

DECODE_ROWS = 16
"""Up to this many rows the decode kernel runs."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """The piece of the result that one program computes, and how.

    block_m, block_n: rows (tokens) and columns (output features).
    block_k: input features an iteration (int8; the 4-bit kernels take a block of 128).
    warps, stages: of the block and of the software pipeline.
    halves: two products of half the columns each instead of one.
    """

    block_m: int
    block_n: int
    block_k: int = 128
    warps: int
    stages: int
    halves: bool = False


DECODE = {
    8: Tile(block_m=8, block_n=128, warps=2, stages=4),
    16: Tile(block_m=16, block_n=128, warps=2, stages=4),
}
PREFILL_SMALL = Tile(block_m=32, block_n=128, warps=4, stages=3)
PREFILL = {
    80: Tile(block_m=128, block_n=128, warps=8, stages=3),
    86: Tile(block_m=64, block_n=128, warps=4, stages=3),
    87: Tile(block_m=64, block_n=128, warps=4, stages=3),
    89: Tile(block_m=64, block_n=128, warps=4, stages=3),
    90: Tile(block_m=128, block_n=128, warps=8, stages=3),
    100: Tile(block_m=128, block_n=128, warps=8, stages=3),
    120: Tile(block_m=64, block_n=128, warps=4, stages=3),
}
_AMPERE = Tile(block_m=128, block_n=128, block_k=64, warps=4, stages=3, halves=True)
_HOPPER = Tile(block_m=128, block_n=256, block_k=128, warps=8, stages=3)
INT8 = {80: _AMPERE, 86: _AMPERE, 87: _AMPERE, 89: _AMPERE, 90: _HOPPER, 100: _HOPPER, 120: _AMPERE}


def nearest(architecture: int) -> int:
    """The newest architecture of the tables that is not newer than ``architecture``.

    Raises: ValueError below 80.
    """
    known = [a for a in ARCHITECTURES if a <= architecture]
    if not known:
        raise ValueError(f"architecture sm_{architecture} is older than sm_80: use the reference backend")
    return known[-1]


def decode_tile(rows: int) -> Tile:
    """The decode tile for ``rows`` tokens."""
    return DECODE[8 if rows <= 8 else 16]


def prefill_tile(architecture: int, rows: int) -> Tile:
    """The prefill tile for ``rows`` tokens."""
    return PREFILL_SMALL if rows <= 32 else PREFILL[nearest(architecture)]


def int8_tile(architecture: int) -> Tile:
    """The int8 tile."""
    return INT8[nearest(architecture)]


def splits(architecture: int, columns: int, blocks: int) -> int:
    """Into how many parts decode splits K: enough programs for four on each multiprocessor, no part below 4 blocks."""
    wanted = 4 * PROCESSORS[nearest(architecture)]
    split = 1
    while split < 16 and columns * split * 2 <= wanted and blocks >= split * 2 * 4:
        split *= 2
    return split
