"""``nvila models``: the published family, from its dimensions alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from nvila_model.cli import options
from nvila_model.cli.ending import CommandError
from nvila_model.cli.progress import Stopwatch

if TYPE_CHECKING:
    from nvila_model.network.vlm import VLM

EXAMPLE = "1344x896"

EXTREMES = ((100, 100), (1000, 1000), (1600, 900), (3000, 1000), (1000, 12000), (4032, 3024))
"""Sizes among which every model finds its smallest and its largest plan."""


def models(
    image: Annotated[str, typer.Option(help="Size of the image whose tokens are counted.")] = EXAMPLE,
    as_json: options.Json = False,
) -> None:
    """List the published models: tiling, compression, tokens, frames, parameters and memory, without weights.

    Memory is that of the weights alone, in bfloat16 and with the language model in 4 bits.
    """
    size = read_size(image)
    with Stopwatch().stage("measure", "building the outlines"):
        rows = [describe(name, size) for name in names()]
    if as_json:
        typer.echo(json.dumps({"image": list(size), "models": rows}, ensure_ascii=False))
    else:
        show(rows, size)


def read_size(text: str) -> tuple[int, int]:
    """Width and height. Raises: CommandError for anything but WIDTHxHEIGHT."""
    width, _, height = text.lower().partition("x")
    if not (width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise CommandError(f"--image {text!r} is not a size: give WIDTHxHEIGHT, such as {EXAMPLE}")
    return int(width), int(height)


def names() -> list[str]:
    """Nano, where it is there, and every preset."""
    from nvila_model.checkpoint.hub import NANO
    from nvila_model.presets import list_models

    return [*(["nano"] if (NANO / "config.json").is_file() else []), *list_models()]


def describe(name: str, size: tuple[int, int]) -> dict[str, Any]:
    """One model as a row of plain data; memory in bytes."""
    from nvila_model.checkpoint.hub import NANO
    from nvila_model.checkpoint.layout import open_checkpoint
    from nvila_model.estimate import count_tokens, estimate_memory, outlined, parameters
    from nvila_model.nvila import NVILA
    from nvila_model.presets import repository

    nano = name == "nano"
    model = NVILA.outline(open_checkpoint(NANO).config) if nano else outlined(name)
    assert model.config is not None
    frames = model.config.num_video_frames
    counts = [count_tokens(model, images=[extreme]).total for extreme in (*EXTREMES, size)]
    return {
        "name": name,
        "repository": None if nano else repository(name),
        "tiling": tiling(model),
        "compression": compression(model),
        "tokens": count_tokens(model, images=[size]).total,
        "fewest_tokens": min(counts),
        "most_tokens": max(counts),
        "frames": frames,
        "video_tokens": count_tokens(model, videos=[frames]).total,
        "context": model.context_length,
        "parameters": parameters(model),
        "bytes_bfloat16": estimate_memory(model).weights,
        "bytes_w4a16": estimate_memory(model, weights="w4a16").weights,
    }


def tiling(model: VLM) -> str:
    """How images are cut, in words."""
    config = model.config
    assert config is not None
    match config.image_aspect_ratio:
        case "dynamic_s2":
            scales = "/".join(map(str, config.scales))
            return f"Dynamic-S2 {scales}, up to {config.max_tiles} tiles"
        case "dynamic":
            return f"{config.min_tiles}-{config.max_tiles} tiles of {config.vision.image_size} + thumbnail"
        case _:
            return f"one tile of {config.vision.image_size}"


def compression(model: VLM) -> str:
    """How many tokens a tile keeps, and how frames are pooled, in words."""
    config = model.config
    assert config is not None
    side = config.vision.image_size // config.vision.patch_size
    rows, columns = model.compressor.out_grid((side, side))
    words = f"{side * side} to {rows * columns} a tile"
    pools = config.video_encoder.pool_sizes
    return words + (f", {pools[0][0]} frames to 1" if pools else "")


def show(rows: list[dict[str, Any]], size: tuple[int, int]) -> None:
    """The rows as a table."""
    width, height = size
    table = Table()
    for heading in ("model", "tiling", "compression"):
        table.add_column(heading)
    for heading in (f"tokens of {width}x{height}", "min-max", "frames", "tokens", "parameters", "bf16", "W4A16"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row["name"],
            row["tiling"],
            row["compression"],
            str(row["tokens"]),
            f"{row['fewest_tokens']}-{row['most_tokens']}",
            str(row["frames"]),
            str(row["video_tokens"]),
            f"{row['parameters'] / 1e6:.1f} M" if row["parameters"] < 1e9 else f"{row['parameters'] / 1e9:.2f} B",
            f"{row['bytes_bfloat16'] / 2**30:.2f} GiB",
            f"{row['bytes_w4a16'] / 2**30:.2f} GiB",
        )
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)
    console.print("Memory of the weights alone. Weights are fetched with --model Efficient-Large-Model/NAME.")
