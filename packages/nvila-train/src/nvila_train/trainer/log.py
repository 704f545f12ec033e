"""The log of a stage: ``log.jsonl``, one object a line, the values means over the labels since the line before."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def append(folder: Path, record: Mapping[str, Any]) -> None:
    """Add a line."""
    with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
        log.write(json.dumps(record) + "\n")


def records(folder: Path) -> list[dict[str, Any]]:
    """All lines; a last one that a killed run left half written is none."""
    path = folder / "log.jsonl"
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
    return [json.loads(line) for line in lines]


def rewind(folder: Path, step: int) -> None:
    """Drop the lines of steps after ``step``, which are about to be taken again."""
    kept = [record for record in records(folder) if record["step"] <= step]
    new = folder / "log.jsonl.new"
    new.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
    new.replace(folder / "log.jsonl")
