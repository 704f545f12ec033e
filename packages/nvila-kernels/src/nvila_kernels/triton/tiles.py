"""Which tile each kernel uses, by architecture and number of rows: a table, so that nothing is tuned at first call.

Chosen by reading compiled code (``benchmarks/bench_sass.py`` compiles every entry and prints what it read), not by
timing, since no GPU was at hand. An architecture is ten times its capability, 89 for 8.9; one that the tables lack uses
the newest entry below it.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from nvila_kernels.backends import interpreted

ARCHITECTURES = (80, 86, 87, 89, 90, 100, 120)
"""Those that the tables were read on."""

AMD = 0
"""Stands for every AMD GPU; of its tiles nothing is known but that they compile and fit."""

SHARED_LIMIT = {AMD: 65536, 80: 166912, 86: 101376, 87: 166912, 89: 101376, 90: 232448, 100: 232448, 120: 101376}
"""Bytes of shared memory that one block may use (CUDA programming guide, table of compute capabilities)."""

PROCESSORS = {AMD: 304, 80: 108, 86: 82, 87: 16, 89: 128, 90: 132, 100: 148, 120: 170}
"""Multiprocessors of the largest common card of each architecture: MI300X, A100, 3090, Orin, 4090, H100, B200, 5090."""

INTERPRETED_ARCHITECTURE = 80
"""Whose tiles triton's interpreter uses, where there is no GPU to ask."""

DECODE_ROWS = 16
"""Up to this many rows the decode kernel runs."""

MANY = 1 << 31
"""The bucket of all row counts beyond the others."""

POWERS = {"block_m": (8, 256), "block_n": (16, 256), "block_k": (32, 128), "warps": (1, 16), "split": (1, 64)}
"""The least and the most of those numbers of a tile that are powers of two."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """The piece of the result that one program computes, and how.

    block_m, block_n: rows (tokens) and columns (output features).
    block_k: input features an iteration (of 8 bits; the 4-bit kernels take a block of 128).
    warps, stages: of the block and of the software pipeline.
    halves: two products of half the columns each instead of one.
    registers: the most that a thread may use. Where nothing is said, the assembler would rather spill a few than take
        more than 128.
    split: parts into which decode splits K; where nothing is said, enough to fill the GPU (``splits``).

    Raises: ValueError for a number that no kernel takes.
    """

    block_m: int
    block_n: int
    block_k: int = 128
    warps: int
    stages: int
    halves: bool = False
    registers: int | None = None
    split: int | None = None

    def __post_init__(self) -> None:
        for name, (least, most) in POWERS.items():
            value = getattr(self, name)
            if value is not None and not (type(value) is int and least <= value <= most and value.bit_count() == 1):
                raise ValueError(f"{name} is {value!r}: a tile needs a power of two of {least} to {most}")
        if type(self.stages) is not int or not 1 <= self.stages <= 8:
            raise ValueError(f"stages is {self.stages!r}: a tile needs 1 to 8")

    def options(self, *, fusion: bool, nvidia: bool = True) -> dict[str, Any]:
        """What a launch tells the compiler; ``fusion`` lets a product and a sum become one rounding."""
        options = {"num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": fusion}
        return options | {"maxnreg": self.registers} if self.registers and nvidia else options


_DECODE = {
    8: Tile(block_m=8, block_n=128, warps=2, stages=4, registers=255),
    16: Tile(block_m=16, block_n=128, warps=2, stages=4, registers=255),
}
_SMALL = {**_DECODE, 32: Tile(block_m=32, block_n=128, warps=4, stages=3)}
_MIDDLE = {**_SMALL, MANY: Tile(block_m=64, block_n=128, warps=4, stages=3)}
_LARGE = {**_SMALL, MANY: Tile(block_m=128, block_n=128, warps=8, stages=3)}
_TENSOR_MEMORY = {**_LARGE, 32: Tile(block_m=32, block_n=128, warps=4, stages=3, registers=128)}
INT4: dict[int, dict[int, Tile]] = {
    AMD: _MIDDLE, 80: _LARGE, 86: _MIDDLE, 87: _MIDDLE, 89: _MIDDLE, 90: _LARGE, 100: _TENSOR_MEMORY, 120: _MIDDLE
}  # fmt: skip
"""W4A16, by architecture and the most rows of a bucket."""

_WARP_PRODUCTS = {
    64: Tile(block_m=64, block_n=128, block_k=64, warps=2, stages=4, halves=True),
    MANY: Tile(block_m=128, block_n=128, block_k=64, warps=4, stages=3, halves=True),
}
_GROUP_PRODUCTS = {
    64: Tile(block_m=64, block_n=128, block_k=128, warps=4, stages=4),
    MANY: Tile(block_m=128, block_n=256, block_k=128, warps=8, stages=3),
}
INT8: dict[int, dict[int, Tile]] = {
    **dict.fromkeys((AMD, 80, 86, 87, 89), _WARP_PRODUCTS),
    90: _GROUP_PRODUCTS,
    # Sums come back from tensor memory for the epilogue, which half of the columns at a time can hold in registers.
    100: {
        **_GROUP_PRODUCTS,
        MANY: Tile(block_m=128, block_n=256, block_k=128, warps=8, stages=3, halves=True),
    },
    120: _WARP_PRODUCTS,
}
"""W8A8."""

_GROUP_FP8 = {**_GROUP_PRODUCTS, MANY: Tile(block_m=128, block_n=128, block_k=128, warps=8, stages=3)}
FP8: dict[int, dict[int, Tile]] = {89: _WARP_PRODUCTS, 90: _GROUP_FP8, 100: _GROUP_FP8, 120: _WARP_PRODUCTS}
"""Scaled float8 products, on the architectures that have them."""


UNFUSED: dict[str, Any] = {"enable_fp_fusion": False}
"""Options of a kernel without a tile: every product and sum rounds by itself, as in the reference."""


@cache
def architecture(device: torch.device) -> int:
    """Ten times the compute capability: 89 for 8.9. An AMD GPU, whose numbers mean something else, is ``AMD``."""
    if device.type != "cuda":
        return INTERPRETED_ARCHITECTURE
    if torch.version.hip is not None:
        return AMD
    major, minor = torch.cuda.get_device_capability(device)
    return major * 10 + minor


@cache
def assembly() -> bool:
    """Whether kernels may hold PTX: on NVIDIA, not in the interpreter or on AMD."""
    return not interpreted() and torch.version.hip is None


def nearest(architecture: int) -> int:
    """The newest architecture of the tables that is not newer than ``architecture``; AMD is its own.

    Raises: ValueError below 80.
    """
    if architecture == AMD:
        return AMD
    known = [a for a in ARCHITECTURES if a <= architecture]
    if not known:
        raise ValueError(f"architecture sm_{architecture} is older than sm_80: use the reference backend")
    return known[-1]


def bucket_of(table: dict[int, dict[int, Tile]], architecture: int, rows: int) -> int:
    """The most rows of the first bucket that holds so many."""
    return next(most for most in table[nearest(architecture)] if rows <= most)


def tile_of(table: dict[int, dict[int, Tile]], architecture: int, rows: int) -> Tile:
    """The tile of a table for so many rows."""
    return table[nearest(architecture)][bucket_of(table, architecture, rows)]


def row_options(block: int) -> dict[str, Any]:
    """The options of a kernel that holds a row of ``block`` features: 16 of them a thread, and no fused rounding."""
    return UNFUSED | {"num_warps": min(max(block // 512, 1), 16)}


def splits(architecture: int, columns: int, blocks: int) -> int:
    """Into how many parts decode splits K: enough programs for four on each multiprocessor, no part below 4 blocks."""
    wanted = 4 * PROCESSORS[nearest(architecture)]
    split = 1
    while split < 16 and columns * split * 2 <= wanted and blocks >= split * 2 * 4:
        split *= 2
    return split
