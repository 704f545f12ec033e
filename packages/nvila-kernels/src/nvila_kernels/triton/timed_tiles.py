"""Tiles that were timed on a GPU of this machine: launches ask for them before the checked-in table.

``nvila bench --tune`` writes them to ``tiles.json`` in the user's cache folder, beside what the ``cpu`` backend keeps
there. Times hold for one card, and for the code that one version of triton makes: entries of other cards and versions
stay in the file and are not used. A tile that no kernel could run with condemns the whole file, since a file that holds
one was not written here.
"""

import json
import logging
import os
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch

from nvila_kernels.cpu.timings_file import cache_file
from nvila_kernels.pack import BLOCK, blocks
from nvila_kernels.triton.tiles import INT4, INT8, MANY, Tile, architecture, bucket_of, nearest

logger = logging.getLogger(__name__)

FORMAT = "nvila-kernels tiles, version 1"

Kernel: TypeAlias = Literal["w4a16", "w8a8"]
TABLES: dict[Kernel, dict[int, dict[int, Tile]]] = {"w4a16": INT4, "w8a8": INT8}
"""The checked-in tables; those of float8 products are not tuned."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What a tile is for: a kernel, the most rows of a bucket of the table, inputs (in whole blocks) and outputs."""

    kernel: Kernel
    most: int
    k: int
    n: int

    def __str__(self) -> str:
        return f"{self.kernel} {'many' if self.most == MANY else self.most}x{self.k}x{self.n}"


@dataclass(frozen=True, kw_only=True)
class Timed:
    """The fastest tile of a problem, its time, and that of the checked-in tile (None if that could not run)."""

    tile: Tile
    seconds: float
    table_seconds: float | None


Cards: TypeAlias = dict[str, dict[str, Timed]]
"""By card, by problem."""


def tiles_file() -> Path:
    """``tiles.json`` in ``$NVILA_KERNELS_CACHE``, or in ``nvila-kernels`` in the user's cache folder."""
    return cache_file().with_name("tiles.json")


def card(device: torch.device) -> str:
    """A GPU's name and architecture, and the version of triton."""
    name = torch.cuda.get_device_name(device)
    return f"{name}, sm_{architecture(device)}, triton {version('triton')}"


def problem_of(text: str) -> Problem:
    """The inverse of ``str(problem)``. Raises: ValueError for any other text."""
    name, _, sizes = text.partition(" ")
    known: dict[str, Kernel] = {kernel: kernel for kernel in TABLES}
    numbers = sizes.replace("many", str(MANY)).split("x")
    if name not in known or len(numbers) != 3 or not all(number.isdecimal() for number in numbers):
        raise ValueError(f"{text!r} names no product")
    most, k, n = map(int, numbers)
    return Problem(kernel=known[name], most=most, k=k, n=n)


def check(problem: Problem, tile: Tile) -> None:
    """Whether the problem's kernel is right with this tile; being fast is another matter.

    Raises: ValueError if it is not.
    """
    if problem.kernel == "w8a8" and (tile.block_n % BLOCK or tile.block_m < 16):
        raise ValueError(f"{problem} takes no tile of {tile.block_m}x{tile.block_n}: 16 rows, {BLOCK} columns at least")


def timed(entry: dict[str, Any]) -> Timed:
    """One entry of a file. Raises: ValueError, TypeError or KeyError for anything else."""
    before = entry["table_seconds"]
    return Timed(
        tile=Tile(**entry["tile"]),
        seconds=float(entry["seconds"]),
        table_seconds=None if before is None else float(before),
    )


def read_tiles(file: Path) -> Cards:
    """All entries of a file, those of other cards too; none if there is no file.

    Raises: ValueError for a file that holds something else, OSError for one that cannot be read.
    """
    if not file.is_file():
        return {}
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
        if held["format"] != FORMAT:
            raise ValueError(f"its format is {held['format']!r}, not {FORMAT!r}")
        found = {name: {p: timed(entry) for p, entry in entries.items()} for name, entries in held["cards"].items()}
        for entries in found.values():
            for text, entry in entries.items():
                check(problem_of(text), entry.tile)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{file} is no table of timed tiles ({reason}): delete it or tune again elsewhere") from None
    return found


def write_tiles(file: Path, cards: Cards) -> None:
    """Replace a file in one step, so that a reader never meets half of it."""
    held = {"format": FORMAT, "cards": {c: {p: asdict(e) for p, e in entries.items()} for c, entries in cards.items()}}
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(f"{file.name}.{os.getpid()}")
    fresh.write_text(json.dumps(held, indent=1) + "\n", encoding="utf-8")
    os.replace(fresh, file)
    timed_here.cache_clear()
    tile_of_bucket.cache_clear()


@cache
def timed_here(device: torch.device) -> dict[str, Timed]:
    """The entries for one GPU, read once a process. A file that cannot be used is said in the log; the checked-in
    tiles serve.
    """
    if device.type != "cuda":
        return {}
    try:
        cards = read_tiles(tiles_file())
        return cards.get(card(device), {}) if cards else {}
    except (OSError, ValueError) as error:
        logger.warning("%s; the checked-in tiles are used", error)
        return {}


@cache
def tile_of_bucket(kernel: Kernel, device: torch.device, most: int, k: int, n: int) -> Tile:
    """The tile of a bucket for one weight: the timed one, or that of the table."""
    found = timed_here(device).get(str(Problem(kernel=kernel, most=most, k=blocks(k) * BLOCK, n=n)))
    return found.tile if found else TABLES[kernel][nearest(architecture(device))][most]


def tile_for(kernel: Kernel, device: torch.device, rows: int, k: int, n: int) -> Tile:
    """The tile for so many rows of ``k`` features and a weight of ``n`` outputs."""
    return tile_of_bucket(kernel, device, bucket_of(TABLES[kernel], architecture(device), rows), k, n)
