"""``nvila bench``: what this machine's kernels take."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from nvila_model.cli import kernel_tiles as tile_tables
from nvila_model.cli import options
from nvila_model.cli.ending import CommandError
from nvila_model.cli.progress import Stopwatch

if TYPE_CHECKING:
    from nvila_kernels.cpu import Shape

QWEN2 = ("1x1536x8960", "512x1536x8960", "1x8960x1536", "512x8960x1536")
SIGLIP = ("1024x1152x4304", "1024x4304x1152")
"""The widest layers of NVILA-Lite-2B."""


def bench(
    backends: Annotated[
        bool,
        typer.Option("--backends", help="Time every kernel of the cpu backend on some shapes, and say which wins."),
    ] = False,
    shape: Annotated[
        list[str] | None,
        typer.Option(metavar="ROWSxKxN", help="Rows, inputs and outputs of a layer; may be repeated."),
    ] = None,
    bits: Annotated[int, typer.Option(min=4, max=8, help="Of the weights of --shape: 4 or 8.")] = 4,
    group: Annotated[int, typer.Option(min=1, help="Inputs that share a 4-bit scale.")] = 128,
    tune: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="Time the tiles of the GPU kernels on the layers of a preset or a folder, and keep the fastest.",
        ),
    ] = None,
    tiles: Annotated[
        bool, typer.Option("--tiles", help="Show the tiles of the GPU kernels: checked in, and timed on cards here.")
    ] = False,
    clear: Annotated[bool, typer.Option("--clear", help="Forget what was measured before.")] = False,
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Measure the kernels that quantized layers can use on this machine's processor, or tune those of its GPU.

    What was measured is kept in the user's cache folder and decides which kernels a model gets.
    """
    if not (backends or clear or tune or tiles):
        raise CommandError("nothing to do: give --backends, --tune MODEL, --tiles or --clear")
    if backends + tiles + bool(tune) > 1:
        raise CommandError("--backends, --tune and --tiles exclude each other: give one of them")
    if bits not in (4, 8):
        raise CommandError(f"--bits {bits} is not a width of weights here: give 4 or 8")
    import torch
    from nvila_kernels.cpu import machine, timings

    if threads:
        torch.set_num_threads(threads)
    if clear:
        timings().clear()
        if (kept := timings().file) is not None:
            kept.with_name("tiles.json").unlink(missing_ok=True)
    if tune:
        tile_tables.tune(tune, as_json)
    if tiles:
        tile_tables.show_tiles(as_json)
    if not backends:
        return
    words = [(text, bits) for text in shape] if shape else [(t, 4) for t in QWEN2] + [(t, 8) for t in SIGLIP]
    shapes = [read_shape(text, group if width == 4 else 0) for text, width in words]
    with Stopwatch().stage("measure", "timing kernels"):
        rows = [describe(each) for each in shapes]
    if as_json:
        typer.echo(json.dumps({"machine": machine(), "cache": str(timings().file), "shapes": rows}))
    else:
        show(rows, f"{machine()}\nkept in {timings().file}")


def read_shape(text: str, group: int) -> Shape:
    """Raises: CommandError for anything but ROWSxKxN."""
    from nvila_kernels.cpu import Shape

    numbers = text.lower().split("x")
    if len(numbers) != 3 or not all(number.isdigit() and int(number) for number in numbers):
        raise CommandError(f"--shape {text!r} is not a shape: give ROWSxKxN, such as {QWEN2[0]}")
    rows, k, n = map(int, numbers)
    return Shape(rows=rows, k=k, n=n, group=min(group, k))


def describe(shape: Shape) -> dict[str, Any]:
    """The candidates of one shape as plain data; seconds are of the shape that was measured in its place."""
    from nvila_kernels.cpu import candidates, choose, layer_bytes, timings

    found = timings().of(shape)
    try:
        winner = choose(shape, {shape.phase: found}).kernel
    except ValueError:
        winner = None
    kernels = candidates(shape.bits)
    return {
        "shape": str(shape),
        "measured": str(shape.measured),
        "chosen": winner,
        "candidates": [
            {
                "name": name,
                "activations": kernels[name].activations,
                "seconds": each.seconds,
                "error": each.error,
                "bytes_ratio": round(kernels[name].bytes(shape.n, shape.k, shape.group) / layer_bytes(shape), 3),
                "refused": each.refused,
            }
            for name, each in found.items()
        ],
    }


def show(rows: list[dict[str, Any]], below: str) -> None:
    """One line a candidate."""
    table = Table()
    for heading in ("layer", "measured as", "kernel", "activations"):
        table.add_column(heading)
    for heading in ("ms", "error", "memory"):
        table.add_column(heading, justify="right")
    table.add_column("")
    for row in rows:
        for number, each in enumerate(row["candidates"]):
            chosen = each["name"] == row["chosen"]
            table.add_row(
                *((row["shape"], row["measured"]) if number == 0 else ("", "")),
                each["name"],
                each["activations"],
                "-" if each["seconds"] is None else f"{each['seconds'] * 1e3:.2f}",
                "-" if each["error"] is None else f"{each['error']:.1e}",
                f"{each['bytes_ratio']:.2f} x",
                "chosen" if chosen else each["refused"] or "",
            )
        table.add_section()
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)
    console.print(below, highlight=False)
    console.print(
        "Memory: the packed weight over the layer's own. A kernel takes a byte a weight at most, if any does."
    )
