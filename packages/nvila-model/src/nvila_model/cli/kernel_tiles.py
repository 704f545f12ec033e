"""``nvila bench --tune`` and ``--tiles``: the tiles of the GPU kernels, timed on the card that is here, and shown."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

from nvila_model.cli.ending import CommandError
from nvila_model.cli.progress import Stopwatch

if TYPE_CHECKING:
    from nvila_kernels.triton import Cards, Kernel, Tile

PARTS: dict[str, Kernel] = {"llm.layers.": "w4a16", "vision.blocks.": "w8a8"}
"""Which linear layers run on which kernel once a model is quantized."""


def tune(name: str, as_json: bool) -> None:
    """Time the tiles of every layer of a model, and keep the fastest for later launches.

    Raises: CommandError without a CUDA device, without triton, or for a model that is not known.
    """
    import torch

    if importlib.util.find_spec("triton") is None or not torch.cuda.is_available():
        raise CommandError("--tune times GPU kernels, and no CUDA device is here: run it on the machine with the card")
    from nvila_kernels.triton import attempts, card, fastest, problems, read_tiles, tiles_file, write_tiles

    device = torch.device("cuda", torch.cuda.current_device())
    cards = kept_tiles(tiles_file())
    mine = cards.setdefault(card(device), {})
    watch = Stopwatch()
    for problem in problems(layers(name), device):
        with watch.stage("measure", f"timing {problem}"):
            mine[str(problem)] = fastest(problem, attempts(problem, device))
            # Another process may have written meanwhile, and this one may be interrupted.
            write_tiles(tiles_file(), {**read_tiles(tiles_file()), card(device): mine})
    print_tiles({card(device): mine}, as_json)


def layers(name: str) -> list[tuple[Kernel, int, int]]:
    """Kernel, inputs and outputs of each layer that quantizing a preset, a folder or nano replaces; equal ones once."""
    import torch

    from nvila_model.checkpoint.hub import NANO
    from nvila_model.checkpoint.layout import open_checkpoint
    from nvila_model.estimate import outlined
    from nvila_model.nvila import NVILA

    folder = NANO if name == "nano" else Path(name)
    model = NVILA.outline(open_checkpoint(folder).config) if folder.is_dir() else outlined(name)
    found: list[tuple[Kernel, int, int]] = [
        (kernel, layer.in_features, layer.out_features)
        for path, layer in model.named_modules()
        for start, kernel in PARTS.items()
        if isinstance(layer, torch.nn.Linear) and path.startswith(start)
    ]
    return list(dict.fromkeys(found))


def show_tiles(as_json: bool) -> None:
    """The checked-in tables, and what was timed on cards of this machine.

    Raises: CommandError without triton, or for a file that is no table of tiles.
    """
    if importlib.util.find_spec("triton") is None:
        raise CommandError("--tiles shows tiles of triton's kernels, and triton is not installed: there is no GPU here")
    from nvila_kernels.triton import tiles_file

    print_tiles(kept_tiles(tiles_file()), as_json, tables=True)


def kept_tiles(file: Path) -> Cards:
    """Raises: CommandError for a file that cannot be used."""
    from nvila_kernels.triton import read_tiles

    try:
        return read_tiles(file)
    except (OSError, ValueError) as error:
        raise CommandError(str(error)) from None


def print_tiles(cards: Cards, as_json: bool, *, tables: bool = False) -> None:
    """Print entries by card, with the checked-in tables if asked."""
    from nvila_kernels.triton import tiles_file

    checked_in = table_rows() if tables else []
    if as_json:
        timed = {card: {text: asdict(each) for text, each in entries.items()} for card, entries in cards.items()}
        rows = [{**row, "tile": asdict(row["tile"])} for row in checked_in]
        typer.echo(json.dumps({"file": str(tiles_file()), "timed": timed, "checked_in": rows}))
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    if tables:
        table = Table("kernel", "architecture", "rows", "tile", title="checked in")
        for row in checked_in:
            table.add_row(row["kernel"], row["architecture"], row["rows"], words(row["tile"]))
        console.print(table)
    for card, entries in cards.items():
        table = Table("product", "tile", "\N{MICRO SIGN}s", "checked-in tile, \N{MICRO SIGN}s", title=card)
        for text, each in entries.items():
            before = "-" if each.table_seconds is None else f"{each.table_seconds * 1e6:.1f}"
            table.add_row(text, words(each.tile), f"{each.seconds * 1e6:.1f}", before)
        console.print(table)
    said = "timed tiles are kept in" if cards else "no tile was timed yet; --tune MODEL will keep them in"
    console.print(f"{said} {tiles_file()}", highlight=False)


def table_rows() -> list[dict[str, Any]]:
    """The checked-in tables, a row a tile."""
    from nvila_kernels.triton import AMD, MANY, TABLES

    return [
        {
            "kernel": kernel,
            "architecture": "AMD" if arch == AMD else f"sm_{arch}",
            "rows": "more" if most == MANY else f"up to {most}",
            "tile": tile,
        }
        for kernel, table in TABLES.items()
        for arch, buckets in sorted(table.items())
        for most, tile in buckets.items()
    ]


def words(tile: Tile) -> str:
    """A tile in a few words: ``8x128x128, 2 warps, 4 stages``."""
    extras = [f"split {tile.split}"] * bool(tile.split) + ["two halves"] * tile.halves
    sides = f"{tile.block_m}x{tile.block_n}x{tile.block_k}"
    return ", ".join([sides, f"{tile.warps} warps", f"{tile.stages} stages", *extras])
