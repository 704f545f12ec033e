"""CSV and TSV files as rows: a column of conversations (as JSON), or one of questions and one of answers.

    image,question,answer
    a.png,What colour?,Red.

A record may span several lines where its text is quoted; its number is that of its first line, the header being line 1.
"""

import csv
import io
from pathlib import Path
from typing import Any, Final

import numpy as np

from nvila_train.data.record import RecordError
from nvila_train.data.source import SourceError
from nvila_train.data.stored.json_files import CHUNK, LONGEST, parsed, too_large
from nvila_train.data.stored.offsets import offsets

QUESTION: Final = ("question", "prompt", "instruction")
ANSWER: Final = ("answer", "response", "output")


class CsvRows:
    """One record a row, below a header with the names of the columns. Only the rows that are asked for are read.

    Raises: SourceError if there is no such file or no such columns, RecordError for a row that cannot be read.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise SourceError(f"no file at {path}: give the path of a CSV file")
        self.path = path
        self.delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        self.size = path.stat().st_size
        self.starts = offsets(path, record_starts)
        if not len(self.starts):
            raise SourceError(f"{path} is empty: a CSV file begins with the names of its columns")
        try:
            self.names = [name.strip() for name in self.fields(0)]
        except RecordError as error:
            raise SourceError(f"{path}: the first line {error.problem}") from None
        if not {"conversations", "messages"} & {*self.names} and self.column(QUESTION, ANSWER) is None:
            raise SourceError(
                f"{path} has the columns {', '.join(self.names)[:200]}: name them conversations, or question and "
                "answer, and image or video"
            )

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, row: int) -> dict[str, Any]:
        fields = self.fields(row + 1)
        if len(fields) != len(self.names):
            raise RecordError("row", f"has {len(fields)} fields, the header {len(self.names)}: quote those with commas")
        record: dict[str, Any] = {name: text or None for name, text in zip(self.names, fields, strict=True)}
        for name in ("image", "images", "video", "videos"):
            if (record.get(name) or "").lstrip().startswith("["):
                record[name] = parsed(record[name])
        pair = self.column(QUESTION, ANSWER)
        if pair is not None and not {"conversations", "messages"} & {*self.names}:
            question, answer = (record.pop(name) or "" for name in pair)
            record["conversations"] = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        return record

    def number(self, row: int) -> int:
        """The number of a row's first line, from 1."""
        return int(self.starts[row + 1, 1])

    def column(self, *choices: tuple[str, ...]) -> list[str] | None:
        """The first name of each choice that is a column; None if one has none."""
        found = [next((name for name in names if name in self.names), None) for names in choices]
        return None if None in found else [name for name in found if name]

    def span(self, record: int) -> tuple[int, int]:
        """Where a record begins and ends, the header being record 0."""
        end = int(self.starts[record + 1, 0]) if record + 1 < len(self.starts) else self.size
        return int(self.starts[record, 0]), end

    def stored(self, record: int) -> bytes:
        """A record as it is written, the end of its line included; the header is record 0."""
        start, end = self.span(record)
        with self.path.open("rb") as file:
            file.seek(start)
            return file.read(end - start)

    def fields(self, record: int) -> list[str]:
        """The fields of a record, the header being record 0. Raises: RecordError."""
        start, end = self.span(record)
        if end - start > LONGEST:
            raise RecordError("row", too_large(end - start))
        data = self.stored(record)
        before = csv.field_size_limit(LONGEST)
        try:
            text = data.decode("utf-8-sig" if start == 0 else "utf-8").rstrip("\r\n")
            return next(csv.reader(io.StringIO(text, newline=""), delimiter=self.delimiter, strict=True), [])
        except (csv.Error, ValueError) as error:
            raise RecordError("row", f"is not CSV in UTF-8: {error}") from None
        finally:
            csv.field_size_limit(before)


def record_starts(path: Path) -> np.ndarray:
    """Where each record begins, and the number of its line from 1, int64 ``[records, 2]``; blank lines are none.

    A line ends a record if an even number of quotes stands before its end.
    """
    starts: list[tuple[int, int]] = []
    quotes = done = lines = 0
    begun = (0, 1)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            bytes_ = np.frombuffer(chunk, dtype=np.uint8)
            ends = np.flatnonzero(bytes_ == ord("\n"))
            counts = np.cumsum(bytes_ == ord('"'))
            for number, end in enumerate(ends.tolist(), start=1):
                if (quotes + int(counts[end])) % 2 == 0:
                    starts.append(begun)
                    begun = done + end + 1, lines + number + 1
            quotes, done, lines = quotes + int(counts[-1]), done + len(chunk), lines + len(ends)
        if begun[0] < done:
            starts.append(begun)
        found = np.array(starts, dtype=np.int64).reshape(-1, 2)
        sizes = np.diff(found[:, 0], append=done)
        blank = np.zeros(len(found), dtype=bool)
        for record in np.flatnonzero(sizes <= 2):
            file.seek(int(found[record, 0]))
            blank[record] = not file.read(int(sizes[record])).strip()
    return found[~blank]
