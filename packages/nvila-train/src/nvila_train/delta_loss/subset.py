"""The rows that stay, as data of the same form as those that were scored."""

from collections.abc import Sequence
from pathlib import Path

from nvila_train.data.stored.shard_names import shard_names
from nvila_train.delta_loss.choices import DeltaLossError
from nvila_train.delta_loss.storage.records import Records


def subset_path(records: Records, out: Path | None = None, *, scores: Path | None = None) -> Path:
    """Where a subset goes: ``out``, or else ``subset`` with the ending of its form, in the working folder.

    Raises: DeltaLossError if readers would take ``out`` for another form, if it lies in what was scored, or if it is
        the file of ``scores``.
    """
    endings = records.storage.endings
    out = out or Path(f"subset{endings[0]}")
    if out.suffix.lower() not in endings:
        raise DeltaLossError(
            f"{out} does not end as what is written to it: a subset of {records.source.path} goes to a file that ends "
            f"in {' or '.join(endings)}"
        )
    if scores is not None and out.resolve() == scores.resolve():
        raise DeltaLossError(f"{out} holds the scores: choose another --out")
    scored = {Path(name).resolve() for name in (records.source.path, *shard_names(records.source.path))}
    if not scored.isdisjoint((out.resolve(), *out.resolve().parents)):
        raise DeltaLossError(f"{out} is part of what was scored, {records.source.path}: choose another --out")
    return out


def write_subset(records: Records, rows: Sequence[int], out: Path) -> None:
    """Write some rows, as a whole or not at all: a subset that is cut short looks like one."""
    unfinished = out.with_name(f"{out.name}.new")
    try:
        records.storage.write(rows, unfinished)
        unfinished.replace(out)
    finally:
        unfinished.unlink(missing_ok=True)
