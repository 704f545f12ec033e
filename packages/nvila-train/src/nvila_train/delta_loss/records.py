"""The rows of a LLaVA file, kept as they are written, so that a subset has the same bytes."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvila_model.llava import read_llava
from nvila_model.messages import Message

from nvila_train.data.record import RecordError, as_record, faults
from nvila_train.delta_loss.errors import DeltaLossError


@dataclass(frozen=True, kw_only=True)
class Records:
    """A file of conversation records.

    Attributes:
        path: the file, JSON or JSONL.
        folder: where relative paths of pictures and clips begin.
        lines: each record as one line of JSON, without its end.
    """

    path: Path
    folder: Path
    lines: tuple[bytes, ...]

    @classmethod
    def read(cls, path: str | Path, *, folder: str | Path | None = None) -> "Records":
        """Read a file: an array of records (``.json``), or a record a line (any other name).

        Args:
            folder: where relative paths begin; by default beside the file.

        Raises: DeltaLossError.
        """
        path = Path(path)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DeltaLossError(f"cannot read {path}: {error.strerror}") from None
        if path.suffix == ".json":
            lines = [json.dumps(record, ensure_ascii=False).encode() for record in _array(data, path)]
        else:
            lines = [line for line in data.splitlines() if line.strip()]
        if not lines:
            raise DeltaLossError(f"{path} holds no records: give a LLaVA file with at least one")
        return cls(path=path, folder=Path(folder) if folder is not None else path.parent, lines=tuple(lines))

    def __len__(self) -> int:
        return len(self.lines)

    def __getitem__(self, row: int) -> dict[str, Any]:
        """A record. Raises: DeltaLossError if the row is not a JSON object."""
        try:
            record = json.loads(self.lines[row])
        except ValueError as error:
            raise DeltaLossError(f"row {row} of {self.path} is not JSON: {error}") from None
        if not isinstance(record, dict):
            raise DeltaLossError(f"row {row} of {self.path} is {type(record).__name__}, not an object: give a record")
        return record

    @property
    def digest(self) -> str:
        """SHA-256 of all rows, which tells whether scores belong to them."""
        hashed = hashlib.sha256()
        for line in self.lines:
            hashed.update(line + b"\n")
        return hashed.hexdigest()

    def source(self, record: Mapping[str, Any]) -> str:
        """The source that a record names in its field ``source``, or else the file's name."""
        return str(record.get("source") or self.path.stem)

    def conversation(self, row: int) -> list[Message]:
        """The messages of a sound record. Raises: DeltaLossError naming the row and the field at fault."""
        fault = next(faults(self._record(row), folder=self.folder), None)
        if fault:
            raise DeltaLossError(f"row {row} of {self.path}: {fault.field}: {fault.problem}")
        return self.messages(row)

    def messages(self, row: int) -> list[Message]:
        """The messages of a record whose media may have gone since it was found sound."""
        return read_llava(self._record(row), folder=self.folder)

    def _record(self, row: int) -> dict[str, Any]:
        try:
            return as_record(self[row])
        except RecordError as error:
            raise DeltaLossError(f"row {row} of {self.path}: {error}") from None


def _array(data: bytes, path: Path) -> list[Any]:
    try:
        found = json.loads(data)
    except ValueError as error:
        raise DeltaLossError(f"{path} is not JSON ({error}): name it .jsonl if it has a record a line") from None
    if not isinstance(found, list):
        raise DeltaLossError(f"{path} holds {type(found).__name__}, not an array of records")
    return found
