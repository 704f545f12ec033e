"""The table of scores: one row a sample, in Parquet."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nvila_train.delta_loss.choices import DeltaLossError, Normalize
from nvila_train.delta_loss.score import Score

if TYPE_CHECKING:
    from types import ModuleType

_NUMBERS = {"row": "int64", "large": "float64", "small": "float64", "large_tokens": "int64", "small_tokens": "int64"}
_KEY = "nvila_train."


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """Scores of the rows of a source.

    Attributes:
        row: number of the record, int64 ``[n]``.
        source: the source that each row belongs to.
        large, small: log-probabilities of the answers, float64 ``[n]``.
        large_tokens, small_tokens: how many tokens they have in each model's words, int64 ``[n]``.
        facts: what was scored: ``data``, ``folder``, ``split``, ``digest``, ``large``, ``small``.
    """

    row: np.ndarray
    source: tuple[str, ...]
    large: np.ndarray
    small: np.ndarray
    large_tokens: np.ndarray
    small_tokens: np.ndarray
    facts: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.row)

    @classmethod
    def of(
        cls, rows: Sequence[int], sources: Sequence[str], scores: Sequence[Score], *, facts: Mapping[str, str]
    ) -> Scores:
        """The table of some rows' scores."""
        return cls(
            row=np.array(rows, dtype=np.int64),
            source=tuple(sources),
            large=np.array([score.large.total for score in scores], dtype=np.float64),
            small=np.array([score.small.total for score in scores], dtype=np.float64),
            large_tokens=np.array([score.large.tokens for score in scores], dtype=np.int64),
            small_tokens=np.array([score.small.tokens for score in scores], dtype=np.int64),
            facts=facts,
        )

    @classmethod
    def join(cls, parts: Sequence[Scores]) -> Scores:
        """Tables behind each other, with the facts of the first."""
        numbers = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _NUMBERS}
        return cls(**numbers, source=tuple(name for part in parts for name in part.source), facts=parts[0].facts)

    def delta(self, normalize: Normalize = "none") -> np.ndarray:
        """``log p_large - log p_small`` of every row; with ``tokens`` of means over the answer's tokens."""
        if normalize == "tokens":
            return self.large / self.large_tokens - self.small / self.small_tokens
        return self.large - self.small

    def write(self, path: Path) -> None:
        """Write a Parquet file, as a whole or not at all; the same scores give the same bytes."""
        arrow, parquet = _arrow()
        columns = {"source": list(self.source)} | {name: getattr(self, name) for name in _NUMBERS}
        table = arrow.table(columns).replace_schema_metadata({_KEY + name: fact for name, fact in self.facts.items()})
        # Several processes may write the same table at the end.
        unfinished = path.with_name(f"{path.name}.{os.getpid()}.new")
        parquet.write_table(table, unfinished)
        unfinished.replace(path)

    @classmethod
    def read(cls, path: str | Path) -> Scores:
        """Read a file that ``write`` made. Raises: DeltaLossError."""
        arrow, parquet = _arrow()
        try:
            table = parquet.ParquetFile(path, memory_map=False).read()
        except FileNotFoundError:
            raise DeltaLossError(f"no scores at {path}: make them with nvila-train score") from None
        except (OSError, arrow.ArrowException) as error:
            raise DeltaLossError(f"{path} is not a Parquet file: {' '.join(str(error).split())}") from None
        missing = sorted({*_NUMBERS, "source"} - set(table.column_names))
        if missing:
            raise DeltaLossError(f"{path} has no column {missing[0]!r}: give a file made by nvila-train score")
        facts = {
            name.decode().removeprefix(_KEY): value.decode()
            for name, value in (table.schema.metadata or {}).items()
            if name.decode().startswith(_KEY)
        }
        numbers: dict[str, Any] = {name: table[name].to_numpy().astype(kind) for name, kind in _NUMBERS.items()}
        return cls(**numbers, source=tuple(table["source"].to_pylist()), facts=facts)


def _arrow() -> tuple[ModuleType, ModuleType]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise DeltaLossError("scores are kept in Parquet by pyarrow: pip install 'nvila-train[prune]'") from None
    return pyarrow, pyarrow.parquet
