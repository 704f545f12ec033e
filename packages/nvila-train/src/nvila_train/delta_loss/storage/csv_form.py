"""Rows of CSV files: a subset has the header and the very bytes of its records."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from nvila_train.data.stored.csv_rows import CsvRows


class Csv:
    """Rows of a CSV or TSV file. Its digest is that of its records, the header first."""

    def __init__(self, rows: CsvRows) -> None:
        self.rows = rows

    @property
    def endings(self) -> tuple[str, ...]:
        return (self.rows.path.suffix.lower(),)

    def digest(self) -> str:
        hashed = hashlib.sha256()
        for record in range(len(self.rows) + 1):
            hashed.update(self.record(record))
        return hashed.hexdigest()

    def write(self, rows: Sequence[int], out: Path) -> None:
        with out.open("wb") as file:
            file.writelines(self.record(record) for record in (0, *(row + 1 for row in rows)))

    def record(self, record: int) -> bytes:
        """A record with the end of its line."""
        return self.rows.stored(record).rstrip(b"\r\n") + b"\n"
