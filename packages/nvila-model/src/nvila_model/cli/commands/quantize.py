"""``nvila quantize``: a checkpoint in few bits."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from nvila_model.cli import options
from nvila_model.cli.ending import CommandError

if TYPE_CHECKING:
    from collections.abc import Callable


class LLMScheme(StrEnum):
    """What becomes of the language model."""

    w4a16 = "w4a16"
    none = "none"


class VisionScheme(StrEnum):
    """What becomes of the vision tower."""

    w8a8 = "w8a8"
    none = "none"


def quantize(
    context: typer.Context,
    source: Annotated[str, typer.Argument(metavar="SRC", help="nano, a folder, or a hub repository owner/name.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="The folder to write; it must not exist.")],
    llm: Annotated[LLMScheme, typer.Option(help="4-bit weights for the language model.")] = LLMScheme.w4a16,
    vision: Annotated[VisionScheme, typer.Option(help="8 bits for the vision tower.")] = VisionScheme.w8a8,
    group: Annotated[int, typer.Option(min=0, help="Inputs that share a 4-bit scale; 0 for a whole row.")] = 128,
    accumulate: Annotated[
        options.AccumulateType, typer.Option(help="Of 4-bit products on a GPU; float16 is for float16 activations.")
    ] = options.AccumulateType.float32,
    policy: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="TOML rules for single layers: skip, bits, group, accumulate."),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="LLaVA-style JSONL; scales are then chosen by AWQ and SmoothQuant."
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Records of --calibrate that are used.")] = 64,
    report: Annotated[bool, typer.Option("--report", help="Print a table of the error of every layer.")] = False,
    revision: options.Revision = None,
    offline: options.Offline = False,
    token: options.Token = None,
    as_json: options.Json = False,
) -> None:
    """Write a quantized copy of a checkpoint, which every command then takes as --model.

    It is read block by block, in a fraction of the model's memory, and a run that was stopped goes on where it was.
    Without --calibrate weights are rounded to nearest.
    """
    from nvila_model.checkpoint.hub import locate
    from nvila_model.quantization.conversion import quantize as convert

    if llm is LLMScheme.none and vision is VisionScheme.none:
        raise CommandError("--llm none with --vision none leaves nothing to quantize: choose w4a16 or w8a8")
    if policy is not None and (said := given(context, "llm", "vision", "group", "accumulate")):
        raise CommandError(f"--policy decides for every layer, {' and '.join(said)} too: give one or the other")
    folder = locate(source, revision=revision, offline=offline, token=token)
    with bar("rounding" if calibrate is None else "choosing scales") as step:
        found = convert(
            folder,
            target,
            llm="w4a16" if llm is LLMScheme.w4a16 else None,
            vision="w8a8" if vision is VisionScheme.w8a8 else None,
            group_size=group,
            accumulate=accumulate.value,
            policy=policy,
            calibration=calibrate,
            samples=samples,
            step=step,
        )
    lines = [vars(line) for line in found]
    before, after = weight_bytes(folder), weight_bytes(target)
    if as_json:
        typer.echo(json.dumps({"model": str(target), "bytes_before": before, "bytes_after": after, "layers": lines}))
        return
    if report:
        show(lines)
    typer.echo(f"{len(lines)} layers, {before / 2**20:.1f} -> {after / 2**20:.1f} MiB: nvila ask --model {target} ...")


def given(context: typer.Context, *names: str) -> list[str]:
    """Which of some options the user has given."""
    sources = {name: context.get_parameter_source(name) for name in names}
    return [f"--{name}" for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"]


@contextmanager
def bar(doing: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, where that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(doing, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def weight_bytes(folder: Path) -> int:
    """Bytes of all safetensors files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


def show(lines: list[dict[str, Any]]) -> None:
    """The layers as a table."""
    table = Table()
    table.add_column("layer")
    table.add_column("scheme")
    for heading in ("weight error", "output error"):
        table.add_column(heading, justify="right")
    for line in lines:
        output = line["output_error"]
        table.add_row(
            line["name"], line["scheme"], f"{line['weight_error']:.4f}", "-" if output is None else f"{output:.4f}"
        )
    console = Console()
    (console if console.is_terminal else Console(width=120)).print(table)
