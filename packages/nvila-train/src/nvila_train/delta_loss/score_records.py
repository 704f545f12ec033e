"""All rows of a source, scored in shards that survive an interruption and are spread over processes.

    <out>.parts/00000.parquet ...   one a shard, each written as a whole
    <out>                           all of them in order, once the last is there

Shards are cut by row alone, and batches never cross them, so neither an interruption nor the number of processes
changes a score. Processes need not talk to each other: each takes every ``world``-th shard, skips those that are there,
and whoever finds them all there at its end joins them. A process that was lost is simply started again.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from nvila_model import NVILA
from nvila_model.inputs import Conversation

from nvila_train.delta_loss.choices import DeltaLossError
from nvila_train.delta_loss.score import POSITIONS, WINDOW, delta_loss
from nvila_train.delta_loss.score_table import Scores
from nvila_train.delta_loss.storage.records import Records

SHARD = 512
"""Rows that are written at once."""


def score_records(
    records: Records,
    out: Path,
    large: NVILA,
    small: NVILA,
    *,
    shard: int = SHARD,
    positions: int = POSITIONS,
    window: int = WINDOW,
    workers: int = 1,
    rank: int = 0,
    world: int = 1,
    report: Callable[[int], None] | None = None,
) -> bool:
    """Score this process's shards, and join all shards if none is missing.

    Args:
        records: what is scored.
        out: the Parquet file to make.
        shard: rows a shard.
        positions, window, workers: as in ``delta_loss``.
        rank, world: this process's number, and how many there are.
        report: called with a number of rows whenever so many more are done.

    Returns: whether ``out`` is there, whole.
    Raises: SampleError for a faulty record, DeltaLossError for one that the models refuse, or if ``out`` or its shards
        belong to other data or models.
    """
    if shard < 1:
        raise DeltaLossError(f"a shard of {shard} rows holds nothing: use at least 1")
    facts = facts_of(records, large, small, settings=f"{shard}/{positions}/{window}")
    if out.exists():
        check(Scores.read(out), facts, out)
        return True
    parts = out.with_name(f"{out.name}.parts")
    parts.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(records), shard)
    for number, start in enumerate(starts):
        path = parts / f"{number:05}.parquet"
        rows = range(start, min(start + shard, len(records)))
        if number % world == rank:
            if path.exists():
                check(Scores.read(path), facts, path)
            else:
                sources: list[str] = []
                scores = delta_loss(
                    _conversations(records, rows, sources),
                    *(large, small),
                    positions=positions, window=window, workers=workers, first=records.number(start),
                )  # fmt: skip
                Scores.of(rows, sources, list(scores), facts=facts).write(path)
            if report:
                report(len(rows))
    return join(out, parts, count=len(starts), facts=facts)


def _conversations(records: Records, rows: range, sources: list[str]) -> Iterator[Conversation]:
    """What is said in each row, which is read once; its source goes to the end of ``sources``."""
    for row in rows:
        sample = records.sample(row)
        sources.append(records.source_of(sample.record))
        yield sample.messages


def join(out: Path, parts: Path, *, count: int, facts: dict[str, str]) -> bool:
    """Join ``count`` shards and remove them; False if other processes still work on some."""
    paths = [parts / f"{number:05}.parquet" for number in range(count)]
    if not all(path.exists() for path in paths):
        return out.exists()
    try:
        found = [Scores.read(path) for path in paths]
    except DeltaLossError:
        if out.exists():  # another process joined them at the same moment
            return True
        raise
    for path, scores in zip(paths, found, strict=True):
        check(scores, facts, path)
    Scores.join(found).write(out)
    shutil.rmtree(parts, ignore_errors=True)
    return True


def facts_of(records: Records, large: NVILA, small: NVILA, *, settings: str) -> dict[str, str]:
    """What scores depend on, as it is kept beside them."""
    source = records.source.under(Path.cwd())
    return {
        "data": source.path,
        "folder": str(source.folder or ""),
        "split": source.split,
        "digest": records.digest,
        "large": fingerprint(large),
        "small": fingerprint(small),
        "settings": settings,
    }


def check(scores: Scores, facts: dict[str, str], path: Path) -> None:
    """Raises: DeltaLossError if scores were made of other data, by other models, or in other batches."""
    for name in ("digest", "large", "small", "settings"):
        if scores.facts.get(name) != facts[name]:
            what = {"digest": "data", "settings": "settings"}.get(name, f"{name} model")
            raise DeltaLossError(f"{path} was made with another {what}: remove it, or choose another --out")


def fingerprint(model: NVILA) -> str:
    """A hash over the names, shapes and first values of all parameters, which tells one checkpoint from another."""
    hashed = hashlib.sha256()
    for name, value in model.state_dict().items():
        first = value.flatten()[:16].float().cpu().numpy().tobytes()
        hashed.update(f"{name} {list(value.shape)} {value.dtype} ".encode() + first)
    return hashed.hexdigest()
