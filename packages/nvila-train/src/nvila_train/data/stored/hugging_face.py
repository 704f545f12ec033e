"""Tables of Hugging Face ``datasets`` as rows: Parquet files, saved folders, repositories of the hub.

Rows are taken as they are stored (pictures as bytes, not decoded), so a picture that does not decode is the fault of
its own sample. Needs the extra ``data``.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nvila_train.data.source import HUB, DataSource, SourceError


class TableRows:
    """A table on this machine, mapped into memory.

    Args:
        table: a ``datasets.Dataset``.
    """

    def __init__(self, table: Any) -> None:
        self.table = table.with_format("arrow")

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return self.table[row].to_pylist()[0]

    def number(self, row: int) -> int:
        """The number of a row, from 1."""
        return row + 1


def open_table(source: DataSource) -> Any:
    """The ``datasets.Dataset`` of a source, or ``IterableDataset`` if it is streamed.

    Raises: SourceError without the extra ``data``, or if it cannot be opened.
    """
    try:
        import datasets
    except ImportError:
        raise SourceError(f"{source.path} is read by datasets: pip install 'nvila-train[data]'") from None
    try:
        match source.form:
            case "saved":
                table = datasets.load_from_disk(source.path)
            case "parquet":
                files = parquet_files(Path(source.path))
                table = datasets.load_dataset("parquet", data_files=files, split="train", streaming=source.streaming)
            case _:
                name = source.path.removeprefix(HUB)
                table = datasets.load_dataset(name, split=source.split, streaming=source.streaming)
    except Exception as error:  # whatever the libraries underneath raise
        reason = " ".join(str(error).split())
        raise SourceError(f"cannot open {source.path}: {reason}") from None
    if isinstance(table, dict):
        if source.split not in table:
            raise SourceError(f"{source.path} has no split {source.split!r}: choose from {', '.join(map(str, table))}")
        table = table[source.split]
    return table.to_iterable_dataset() if source.streaming and isinstance(table, datasets.Dataset) else table


def stream_table(table: Any, start: int) -> Iterator[dict[str, Any]]:
    """Rows of an ``IterableDataset`` from row ``start`` on."""
    for row in table.skip(start).with_format("arrow"):
        yield row.to_pylist()[0]


def parquet_files(path: Path) -> list[str]:
    """A file, or the Parquet files of a folder in order of their names. Raises: SourceError."""
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not all(file.is_file() for file in files):
        raise SourceError(f"no file at {path}: give the path of a .parquet file")
    return [str(file) for file in files]
