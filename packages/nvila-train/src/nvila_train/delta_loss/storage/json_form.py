"""Rows of JSON and JSONL files: a subset has a record a line, in JSONL with the very bytes of the source."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from nvila_train.data.stored.json_files import JsonlRows

ENDINGS = (".jsonl", ".ndjson")


class Lines:
    """Rows of a JSONL file. Its digest is that of its lines, without blank ones."""

    endings = ENDINGS

    def __init__(self, rows: JsonlRows) -> None:
        self.rows = rows

    def digest(self) -> str:
        with self.rows.path.open("rb") as file:
            return digest(line.rstrip(b"\r\n") for line in file if line.strip())

    def write(self, rows: Sequence[int], out: Path) -> None:
        write(map(self.rows.line, rows), out)


class Array:
    """Rows of a JSON file that holds one array. Its digest is that of the lines which a subset of all rows has."""

    endings = ENDINGS

    def __init__(self, rows: Sequence[Any]) -> None:
        self.rows = rows

    def digest(self) -> str:
        return digest(map(line_of, self.rows))

    def write(self, rows: Sequence[int], out: Path) -> None:
        write((line_of(self.rows[row]) for row in rows), out)


def line_of(row: Any) -> bytes:
    try:
        return json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair
        return json.dumps(row).encode()


def digest(lines: Iterable[bytes]) -> str:
    hashed = hashlib.sha256()
    for line in lines:
        hashed.update(line + b"\n")
    return hashed.hexdigest()


def write(lines: Iterable[bytes], out: Path) -> None:
    with out.open("wb") as file:
        file.writelines(line + b"\n" for line in lines)
