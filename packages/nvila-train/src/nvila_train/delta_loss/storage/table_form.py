"""Rows of tables (Parquet, saved folders, repositories): a subset is one Parquet file with the same columns."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from nvila_train.data.stored.hugging_face import TableRows
from nvila_train.delta_loss.storage.form import TAIL

PART = 100
"""Rows that are looked at together."""
GROUP = 64 * 2**20
"""Bytes of a row group; to read one row of a Parquet file, all of its group is read."""


class Table:
    """Rows of a table of ``datasets``. Its digest is the same in whichever of the forms the rows are stored."""

    endings = (".parquet",)

    def __init__(self, rows: TableRows) -> None:
        self.table = rows.table

    def digest(self) -> str:
        hashed = hashlib.sha256()
        for part in self.table.iter(batch_size=PART):
            columns = [[value for chunk in column.chunks for value in outlined(chunk)] for column in part.columns]
            for row in zip(*columns, strict=True):
                hashed.update(json.dumps(dict(zip(part.column_names, row, strict=True)), default=str).encode() + b"\n")
        return hashed.hexdigest()

    def write(self, rows: Sequence[int], out: Path) -> None:
        import pyarrow
        from pyarrow import parquet

        group: list[Any] = []
        # The schema says which columns are pictures, for those who read the subset with datasets.
        with parquet.ParquetWriter(out, self.table.features.arrow_schema) as writer:
            for part in self.table.select(rows).iter(batch_size=PART):
                group.append(part)
                if sum(each.nbytes for each in group) >= GROUP:
                    writer.write_table(pyarrow.concat_tables(group))
                    group = []
            if group:
                writer.write_table(pyarrow.concat_tables(group))


def outlined(array: Any) -> list[Any]:
    """The values of an array of Arrow in plain types; bytes as ``outlined_files`` gives them, however deep they lie."""
    from pyarrow import types

    if not holds_files(array.type):
        return array.to_pylist()
    if is_file(array.type):
        return outlined_files(array)
    if types.is_struct(array.type):
        names = [field.name for field in array.type]
        found: Iterable[Any] = (
            dict(zip(names, parts, strict=True)) for parts in zip(*map(outlined, array.flatten()), strict=True)
        )
    else:
        inside = iter(outlined(array.flatten()))
        found = (list(islice(inside, length or 0)) for length in array.value_lengths().to_pylist())
    return [value if known else None for value, known in zip(found, array.is_valid().to_pylist(), strict=True)]


def outlined_files(array: Any) -> list[Any]:
    """For each value of bytes their number and the last of them in hexadecimal; no more than these is read.

    A scalar of Arrow would be the plain way to one value, but it copies all of it.
    """
    from pyarrow import types

    _, offsets, data = array.buffers()
    kind = np.int64 if types.is_large_binary(array.type) else np.int32
    ends = np.frombuffer(offsets, kind)[array.offset :][: len(array) + 1].tolist()
    return [
        [end - start, bytes(data[max(start, end - TAIL) : end]).hex() if end > start else ""] if known else None
        for (start, end), known in zip(pairwise(ends), array.is_valid().to_pylist(), strict=True)
    ]


def holds_files(kind: Any) -> bool:
    """Whether bytes are somewhere in a type of Arrow."""
    return is_file(kind) or any(holds_files(kind.field(place).type) for place in range(kind.num_fields))


def is_file(kind: Any) -> bool:
    from pyarrow import types

    return types.is_binary(kind) or types.is_large_binary(kind)
