"""JSON and JSONL files as rows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from nvila_model.inputs import JSONFileError, parse_json

from nvila_train.data.record import RecordError
from nvila_train.data.source import SourceError
from nvila_train.data.stored.offsets import offsets

CHUNK = 16 * 2**20
"""Bytes that are looked through at once for the ends of lines."""

LONGEST = 64 * 2**20
"""Bytes of a record at most; a longer one would take several times as much memory."""


class JsonlRows:
    """One JSON object a line; blank lines are no rows. Only the lines that are asked for are read.

    Args:
        path: the file; it must not change while it is open.

    Raises: SourceError if there is no such file, RecordError for a line that is not JSON.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise SourceError(f"no file at {path}: give the path of a JSONL file")
        self.path = path
        self.size = path.stat().st_size
        self.lines = offsets(path, numbered_lines)

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, row: int) -> Any:
        start, end = self.span(row)
        if end - start > LONGEST:
            raise RecordError("row", too_large(end - start))
        return parsed(self.line(row))

    def number(self, row: int) -> int:
        """The number of the row's line, from 1."""
        return int(self.lines[row, 1])

    def span(self, row: int) -> tuple[int, int]:
        """Where a row begins, and where the next one does."""
        end = int(self.lines[row + 1, 0]) if row + 1 < len(self.lines) else self.size
        return int(self.lines[row, 0]), end

    def line(self, row: int) -> bytes:
        """A row as it is written, without the end of its line."""
        start, end = self.span(row)
        # Opened anew each time: worker processes that share a file handle would move each other's place.
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(end - start).rstrip(b"\r\n")


class ArrayRows:
    """The rows of a JSON file that holds one array; the whole file is read. Raises: SourceError."""

    def __init__(self, path: Path) -> None:
        try:
            rows = parse_json(path)
        except FileNotFoundError as error:
            raise SourceError(f"cannot read {path}: {error.strerror}") from None
        except JSONFileError as error:
            raise SourceError(f"{error}: give an array of records, or name it .jsonl") from None
        if not isinstance(rows, list):
            raise SourceError(f"{path} holds {type(rows).__name__}, not an array of records")
        self.rows: list[Any] = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> Any:
        return self.rows[row]

    def number(self, row: int) -> int:
        """The number of a row, from 1."""
        return row + 1


def parsed(text: bytes | str) -> Any:
    """A record of JSON. Raises: RecordError."""
    try:
        return json.loads(text)
    except RecursionError:
        raise RecordError("row", "is nested too deeply for a record") from None
    except ValueError as error:
        raise RecordError("row", f"is not JSON: {error}") from None


def too_large(size: int) -> str:
    """What is wrong with a record of so many bytes."""
    return f"takes {size / 1e6:.0f} MB > {LONGEST / 1e6:.0f} MB: keep its pictures in files of their own"


def numbered_lines(path: Path) -> np.ndarray:
    """Where each line that is not blank begins, and its number from 1, int64 ``[lines, 2]``."""
    found = [np.zeros(1, dtype=np.int64)]
    done = 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            found.append(np.flatnonzero(np.frombuffer(chunk, dtype=np.uint8) == ord("\n")).astype(np.int64) + done + 1)
            done += len(chunk)
        starts = np.concatenate(found)
        starts = starts[starts < done]
        lengths = np.diff(starts, append=done)
        blank = lengths == 1
        unsure = (lengths > 1) & (lengths < SHORT)  # spaces, or an empty line of Windows
        unsure[-1:] |= blank[-1:]  # the last line may be one letter without an end
        for line in np.flatnonzero(unsure):
            file.seek(int(starts[line]))
            blank[line] = not file.read(int(lengths[line])).strip()
    numbers = np.arange(1, len(starts) + 1)
    return np.stack((starts, numbers), axis=1)[~blank]


SHORT = 16
"""Bytes of a line below which it may be blank; no record is shorter."""
