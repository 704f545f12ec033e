"""The data that is scored and pruned: any source whose rows can be read alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from nvila_model.inputs import Message, read_llava

from nvila_train.data.conversations import Sample, read_sample
from nvila_train.data.record import as_record
from nvila_train.data.source import DataSource
from nvila_train.data.stored.csv_rows import CsvRows
from nvila_train.data.stored.hugging_face import TableRows
from nvila_train.data.stored.json_files import ArrayRows, JsonlRows
from nvila_train.data.stored.open_rows import Rows, open_rows
from nvila_train.data.stored.tar_shards import ShardRows
from nvila_train.delta_loss.choices import DeltaLossError
from nvila_train.delta_loss.storage.csv_form import Csv
from nvila_train.delta_loss.storage.form import Storage
from nvila_train.delta_loss.storage.json_form import Array, Lines
from nvila_train.delta_loss.storage.table_form import Table
from nvila_train.delta_loss.storage.tar_form import Tars


@dataclass(frozen=True, kw_only=True)
class Records:
    """Conversations by row.

    Attributes:
        source: where they are.
        rows: what is stored there, by number.
        storage: how it is stored.
    """

    source: DataSource
    rows: Rows
    storage: Storage

    @classmethod
    def open(cls, source: str | Path | DataSource) -> "Records":
        """Open a source; nothing but its index is read.

        Raises: DeltaLossError for a source that is read from front to back, SourceError if it cannot be opened.
        """
        source = source if isinstance(source, DataSource) else DataSource(path=str(source))
        rows = None if source.streaming else open_rows(source)
        match rows:
            case JsonlRows():
                storage = Lines(rows)
            case ShardRows():
                storage = Tars(rows)
            case TableRows():
                storage = Table(rows)
            case CsvRows():
                storage = Csv(rows)
            case ArrayRows():
                storage = Array(rows.rows)
            case _:
                remedy = "leave out streaming" if source.streaming else "download it first"
                raise DeltaLossError(
                    f"{source.path} comes as a stream, and scores belong to rows that can be read again alone: {remedy}"
                )
        return cls(source=source, rows=rows, storage=storage)

    def __len__(self) -> int:
        return len(self.rows)

    @cached_property
    def digest(self) -> str:
        """What tells whether scores belong to these rows; see ``storage``."""
        return self.storage.digest()

    def number(self, row: int) -> int:
        """How people count a row: the number of its line, or from 1."""
        return self.rows.number(row)

    def sample(self, row: int) -> Sample:
        """A row that is sound. Raises: SampleError naming the row and the field at fault."""
        return read_sample(lambda: self.rows[row], self.source, self.number(row))

    def messages(self, row: int) -> list[Message]:
        """The messages of a row whose media may have gone since it was found sound."""
        return read_llava(as_record(self.rows[row]), folder=self.source.folder)

    def source_of(self, record: Mapping[str, Any]) -> str:
        """The source that a record names in its field ``source``, or else the name of the data."""
        return str(record.get("source") or self.name)

    @cached_property
    def name(self) -> str:
        """What the data is called, without the ending of a file."""
        path = Path(self.source.path)
        whole = self.source.name is not None or self.source.remote or path.is_dir()
        return self.source.label if whole else path.stem
