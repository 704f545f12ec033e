"""From a source to its rows."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from nvila_model.inputs import is_address

from nvila_train.data.source import DataSource, SourceError
from nvila_train.data.stored.csv_rows import CsvRows
from nvila_train.data.stored.hugging_face import TableRows, open_table, stream_table
from nvila_train.data.stored.json_files import ArrayRows, JsonlRows
from nvila_train.data.stored.shard_names import shard_names
from nvila_train.data.stored.stream import Stream
from nvila_train.data.stored.tar_shards import ShardRows, from_members, stream_shards
from nvila_train.data.stored.unpacked import unpacked


class Rows(Protocol):
    """Rows that can be read alone, by number from 0."""

    def __len__(self) -> int: ...
    def __getitem__(self, row: int, /) -> Any: ...
    def number(self, row: int, /) -> int:
        """How people count a row: the number of its line in a file of lines, else from 1."""
        ...


def open_rows(source: DataSource) -> Rows | Stream:
    """The rows of a source; nothing but its index is read.

    Raises: SourceError.
    """
    rows = _open(source)
    if not isinstance(rows, Stream) and len(rows) == 0:
        raise SourceError(f"{source.path} has no rows")
    return rows


def _open(source: DataSource) -> Rows | Stream:
    form = source.form
    if form in ("json", "jsonl", "csv"):
        if source.streaming or is_address(source.path):
            raise SourceError(
                f"{source.path}: a {form.upper()} file is read in place: download it, leave out streaming"
            )
        path = plain(Path(source.path))
        return JsonlRows(path) if form == "jsonl" else CsvRows(path) if form == "csv" else ArrayRows(path)
    if form == "shards":
        return _open_shards(source, shard_names(source.path))
    table = open_table(source)
    return Stream(lambda start: stream_table(table, start)) if source.streaming else TableRows(table)


def _open_shards(source: DataSource, names: Sequence[str]) -> Rows | Stream:
    if source.streaming or source.remote:
        return Stream(lambda start: stream_shards(names, start), from_members)
    return ShardRows([plain(Path(name)) for name in names])


def plain(path: Path) -> Path:
    """A file that can be read at any place: itself, or what is packed in it. Raises: SourceError."""
    return unpacked(path) if path.suffix.lower() in (".gz", ".tgz") else path
