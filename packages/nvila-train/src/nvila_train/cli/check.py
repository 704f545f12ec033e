"""``nvila-train check``: is this data fit to train on?"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from nvila_model import NVILA

    from nvila_train.data.checks.row_faults import Report

MOST = 20
"""Faults that the table lists; ``--json`` lists all."""

Data = Annotated[
    str, typer.Argument(help="A .json, .jsonl, .csv, .parquet or .tar file, a folder of them, or hub:owner/name.")
]
Media = Annotated[str | None, typer.Option(help="Folder where relative paths begin; the file's own by default.")]
Model = Annotated[str, typer.Option("--model", "-m", help="Whose processor counts tokens.")]
Split = Annotated[str, typer.Option(help="Of a repository on the hub.")]
Streaming = Annotated[bool, typer.Option("--streaming", help="Read from front to back.")]
Limit = Annotated[int | None, typer.Option(min=1, help="Rows to look at; all by default.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
Sheet = Annotated[Path | None, typer.Option(help="Write a contact sheet of samples to this picture.")]


def check_(
    data: Data,
    media: Media = None,
    model: Model = "nano",
    split: Split = "train",
    streaming: Streaming = False,
    limit: Limit = None,
    as_json: AsJson = False,
    sheet: Sheet = None,
) -> None:
    """Name the row and field of each fault, count tokens, and draw samples. Ends with code 1 if there are faults."""
    from rich.console import Console

    from nvila_train.data.checks.contact_sheet import contact_sheet
    from nvila_train.data.checks.row_faults import SHOWN, check
    from nvila_train.data.source import DataSource

    source = DataSource(path=data, media=media, split=split, streaming=streaming)
    counting = outline(model)
    with Console(stderr=True).status("looking", spinner="line") as status:
        found = check(source, counting, limit=limit, report=lambda rows: status.update(f"looked at {rows} rows"))
    if as_json:
        print(json.dumps(as_object(found, data, counting)))
    else:
        show(found, data, model, counting)
    if sheet is not None:
        contact_sheet(found.samples[:: -(-len(found.samples) // SHOWN) or 1]).save(sheet)
    if found.faults:
        raise typer.Exit(1)


def outline(name: str) -> "NVILA":
    """A checkpoint without its weights: it processes and counts, it cannot answer. Raises: CheckpointError."""
    from nvila_model import NVILA
    from nvila_model.checkpoint import locate, open_checkpoint
    from nvila_model.inputs import Tokenizer
    from nvila_model.network import meta_device

    folder = open_checkpoint(locate(name), None)
    tokenizer = Tokenizer.from_folder(folder.tokenizer, chat_template=folder.config.chat_template)
    with meta_device():
        return NVILA.from_config(folder.config, tokenizer)


def as_object(found: "Report", data: str, model: "NVILA") -> dict[str, Any]:
    """The report as it is printed with ``--json``."""
    from nvila_train.data.checks.row_faults import quantiles

    return {
        "data": data,
        "rows": found.rows,
        "faulty": found.faulty,
        "faults": [vars(fault) for fault in found.faults],
        "images": found.images,
        "videos": found.videos,
        "answers": found.turns,
        "tokens": quantiles(found.tokens) | {"total": sum(found.tokens)},
        "learnt": quantiles(found.learnt) | {"total": sum(found.learnt)},
        "beyond_context": beyond(found, model),
        "context": model.context_length,
    }


def beyond(found: "Report", model: "NVILA") -> int:
    """Rows that are longer than the context."""
    return sum(length > model.context_length for length in found.tokens)


def show(found: "Report", data: str, name: str, model: "NVILA") -> None:
    """Tables for people."""
    from rich.console import Console
    from rich.table import Table

    from nvila_train.data.checks.row_faults import quantiles

    console = Console()
    sound = found.rows - found.faulty
    console.print(
        f"{data}: {found.rows} rows, {found.faulty} faulty; in the {sound} sound ones {found.images} images, "
        f"{found.videos} videos, {found.turns} answers",
        highlight=False,
        soft_wrap=True,
    )
    for fault in found.faults[:MOST]:
        console.print(f"row {fault.row}: {fault.field}: {fault.problem}", highlight=False, markup=False, soft_wrap=True)
    if len(found.faults) > MOST:
        console.print(f"and {len(found.faults) - MOST} more: --json lists all")
    if found.tokens:
        table = Table("tokens", *quantiles(found.tokens), "total", title=f"with the processor of {name}")
        for kind, values in (("of a sample", found.tokens), ("learnt", found.learnt)):
            table.add_row(kind, *(f"{value:g}" for value in quantiles(values).values()), str(sum(values)))
        console.print(table)
    if count := beyond(found, model):
        console.print(f"{count} rows are longer than the context of {model.context_length} tokens", highlight=False)
