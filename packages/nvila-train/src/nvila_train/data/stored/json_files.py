"""JSON and JSONL files as rows."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from nvila_train.data.record import RecordError
from nvila_train.data.source import SourceError
from nvila_train.data.stored.offsets import offsets

CHUNK = 16 * 2**20
"""Bytes that are looked through at once for the ends of lines."""


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
        self.starts = offsets(path, line_starts)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, row: int) -> Any:
        try:
            return json.loads(self.line(row))
        except ValueError as error:
            raise RecordError("row", f"is not JSON: {error}") from None

    def line(self, row: int) -> bytes:
        """A row as it is written, without the end of its line."""
        start = int(self.starts[row])
        end = int(self.starts[row + 1]) if row + 1 < len(self.starts) else self.size
        # Opened anew each time: worker processes that share a file handle would move each other's place.
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(end - start).rstrip(b"\r\n")


def line_starts(path: Path) -> np.ndarray:
    """Where each line that is not blank begins, int64 ``[lines]``."""
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
        unsure = lengths == 2  # an empty line of Windows
        unsure[-1:] |= blank[-1:]  # the last line may be one letter without an end
        for line in np.flatnonzero(unsure):
            file.seek(int(starts[line]))
            blank[line] = not file.read(2).strip()
    return starts[~blank]


def read_json(path: Path) -> list[Any]:
    """The rows of a JSON file that holds one array; the whole file is read.

    Raises: SourceError.
    """
    try:
        rows = json.loads(path.read_bytes())
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise SourceError(f"{path} is not JSON ({error}): give an array of records, or name it .jsonl") from None
    if not isinstance(rows, list):
        raise SourceError(f"{path} holds {type(rows).__name__}, not an array of records")
    return rows
