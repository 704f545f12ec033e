"""Rows of tables (Parquet, saved folders, repositories): a subset is one Parquet file with the same columns."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nvila_train.data.hugging_face import TableRows
from nvila_train.delta_loss.storage import TAIL

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
            for row in zip(*map(outlined, part.columns), strict=True):
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


def outlined(column: Any) -> list[Any]:
    """The values of a column, without reading what files it holds."""
    return [outline(value) for value in column] if holds_files(column.type) else column.to_pylist()


def outline(value: Any) -> Any:
    """A value of Arrow in plain types, for bytes their number and the last of them; only those are read."""
    from pyarrow import types

    if not value.is_valid:
        return None
    if is_file(value.type):
        data = value.as_buffer()
        return [data.size, bytes(data[max(0, data.size - TAIL) :]).hex()]
    if types.is_struct(value.type):
        return {name: outline(part) for name, part in value.items()}
    if types.is_nested(value.type) and holds_files(value.type):
        return [outline(part) for part in value.values]
    return value.as_py()


def holds_files(kind: Any) -> bool:
    """Whether bytes are somewhere in a type of Arrow."""
    return is_file(kind) or any(holds_files(kind.field(place).type) for place in range(kind.num_fields))


def is_file(kind: Any) -> bool:
    from pyarrow import types

    return types.is_binary(kind) or types.is_large_binary(kind)
