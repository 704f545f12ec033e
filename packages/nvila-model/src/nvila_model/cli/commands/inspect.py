"""``nvila inspect MEDIA``: what a model sees of one image or video, and what it costs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from nvila_model.cli import options
from nvila_model.cli.commands.ask import NANO
from nvila_model.cli.ending import CommandError, print_note
from nvila_model.cli.progress import Stopwatch

if TYPE_CHECKING:
    from nvila_model.cli.media_arguments import VideoOptions


def inspect(
    word: Annotated[str, typer.Argument(metavar="MEDIA", help="An image or a video, as for ask.", show_default=False)],
    model: options.Model = None,
    revision: options.Revision = None,
    offline: options.Offline = False,
    token: options.Token = None,
    device: options.Device = "cpu",
    dtype: options.DtypeOption = None,
    threads: options.Threads = None,
    frames: options.Frames = None,
    fps: options.Fps = None,
    allow_truncated: options.AllowTruncated = False,
    allow_private: options.AllowPrivate = False,
    limit: options.LimitWords = None,
    max_tiles: options.MaxTiles = None,
    picture: Annotated[
        Path | None, typer.Option(help="Save a picture of the tiles over the image (.png, .jpg, ...).")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Show how a model cuts an image or video into tiles, how many tokens they become, and how long each stage takes.

    With the name of a preset (see nvila models) as --model, no weights are needed and nothing is timed.
    """
    if picture is not None and not picture.parent.is_dir():
        raise CommandError(f"{picture} cannot be written: there is no folder {picture.parent}")
    source = options.Source(
        model=model, revision=revision, offline=offline, token=token,
        device=device, dtype=dtype, threads=threads, max_tiles=max_tiles,
    )  # fmt: skip
    watch = Stopwatch()
    from nvila_model.cli.media_arguments import VideoOptions

    video = VideoOptions(frames=frames, fps=fps, allow_truncated=allow_truncated, allow_private=allow_private)
    with options.media_limits(limit):
        report, sketch = inspect_medium(word, source, video, watch)
    if picture is not None:
        sketch(picture)
    if as_json:
        typer.echo(json.dumps(report, ensure_ascii=False))
    else:
        show(report)
    if model is None:
        print_note(NANO.replace("answered by", "seen by"))


def inspect_medium(
    word: str, source: options.Source, video: VideoOptions, watch: Stopwatch
) -> tuple[dict[str, Any], Any]:
    """Everything about one medium, and a function that draws it to a file."""
    from nvila_model.cli.media_arguments import open_media

    with watch.stage("decode", "decoding"):
        media = open_media([word], video)
    if len(media) != 1:
        raise CommandError(f"{word} matches {len(media)} files: give one")
    from nvila_model.cli.stage_times import measure, plan_only
    from nvila_model.presets import list_models

    if source.name in list_models():
        seen = plan_only(media[0], source.name, source.max_tiles, watch)
    else:
        seen = measure(source.open(watch), media[0], watch)
    return {"media": word, "model": source.name, **seen.to_dict(watch.seconds)}, seen.draw


def show(report: dict[str, Any]) -> None:
    """The report as two small tables."""
    console = Console()
    facts = Table(show_header=False, box=None)
    width, height = report["size"]
    facts.add_row("media", report["media"])
    facts.add_row("model", report["model"])
    facts.add_row("size", f"{width} x {height}")
    if "frames" in report:
        if "timestamps" in report:
            moments, unit = [f"{moment:.2f}" for moment in report["timestamps"]], " s"
        else:
            moments, unit = [f"number {number}" for number in report["frame_numbers"]], ""
        more = ", ..." if len(moments) > 8 else ""
        facts.add_row("frames", f"{report['frames']} at {', '.join(moments[:8])}{more}{unit}")
    grids = ", ".join(f"{rows} x {columns}" for rows, columns in report["grids"])
    order = ", smallest scale first" if len(report["grids"]) > 1 else ""
    thumbnail = " and a thumbnail" if report["thumbnail"] else ""
    facts.add_row("grids", f"{grids} (rows x columns{order}){thumbnail}")
    facts.add_row("tiles", f"{report['tiles']} of {report['tile']} px" + (" a frame" if "frames" in report else ""))
    facts.add_row("tokens", f"{report['tokens']} ({report['tokens_per_tile']} a tile or block before framing)")
    if "prompt_tokens" in report:
        facts.add_row("prompt", f"{report['prompt_tokens']} tokens with the chat template")
    console.print(facts)
    if report["seconds"]:
        times = Table("stage", "seconds")
        times.columns[1].justify = "right"
        for name, seconds in report["seconds"].items():
            times.add_row(name, f"{seconds:.4f}")
        console.print(times)
