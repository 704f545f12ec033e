"""What is wrong with a data set, row by row, and how long its samples are, before a run finds out."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from nvila_model import NVILA, Image
from nvila_model.inputs import read_llava

from nvila_train.data.conversations import Sample, read_record
from nvila_train.data.reader import plainly
from nvila_train.data.record import RecordError, media_of
from nvila_train.data.record_faults import faults
from nvila_train.data.source import DataSource
from nvila_train.data.stored.open_rows import open_rows
from nvila_train.data.stored.stream import Stream

SHOWN = 12
"""Sound samples that a contact sheet shows; a report keeps up to twice as many, spread over the rows."""


@dataclass(frozen=True, kw_only=True)
class RowFault:
    """One fault.

    Attributes:
        row: as people count: the number of its line, or from 1.
        field: the part of the record, such as ``image[1]``; ``model`` for what only the model refuses.
        problem: half a sentence.
    """

    row: int
    field: str
    problem: str


@dataclass(kw_only=True)
class Report:
    """What was found.

    Attributes:
        rows: looked at.
        faulty: rows with a fault.
        faults: all of them.
        images, videos, turns: of the sound rows; a turn is an answer.
        tokens: positions of each sound row, media counted.
        learnt: tokens of each sound row that are learnt.
        samples: some sound rows.
    """

    rows: int = 0
    faulty: int = 0
    faults: list[RowFault] = field(default_factory=list)
    images: int = 0
    videos: int = 0
    turns: int = 0
    tokens: list[int] = field(default_factory=list)
    learnt: list[int] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)


def check(
    source: DataSource, model: NVILA, *, limit: int | None = None, report: Callable[[int], None] | None = None
) -> Report:
    """Look at every row: its record, its files, and what the model's processor makes of it.

    Args:
        source: what to look at.
        model: its processor and its counts are used, its weights are not.
        limit: rows to look at, from the first on; None looks at all.
        report: called with the number of rows that were looked at.

    Raises: SourceError if the source cannot be opened.
    """
    found = Report()
    spacing = 1
    for place, (row, read) in enumerate(stored_rows(source)):
        if place == limit:
            break
        found_here, sample = looked_at(row, read, source, model, found)
        found.rows += 1
        found.faulty += bool(found_here)
        found.faults += found_here
        if sample is not None and place % spacing == 0:
            found.samples.append(sample)
            if len(found.samples) == 2 * SHOWN:  # every other one, so that they stay spread over what was seen
                found.samples, spacing = found.samples[::2], 2 * spacing
        if report:
            report(found.rows)
    return found


def stored_rows(source: DataSource) -> Iterator[tuple[int, Callable[[], Any]]]:
    """Each row's number, and what reads it."""
    rows = open_rows(source)
    if isinstance(rows, Stream):
        for number, stored in enumerate(rows):
            yield number + 1, lambda stored=stored: rows.read(stored)
    else:
        for number in range(len(rows)):
            yield rows.number(number), lambda number=number: rows[number]


def looked_at(
    row: int, read: Callable[[], Any], source: DataSource, model: NVILA, found: Report
) -> tuple[list[RowFault], Sample | None]:
    """The faults of a row; if there are none its numbers are added to ``found``."""
    try:
        record = read_record(read)
    except RecordError as error:
        return [RowFault(row=row, field=error.field, problem=error.problem)], None
    found_here = [
        RowFault(row=row, field=fault.field, problem=fault.problem) for fault in faults(record, folder=source.folder)
    ]
    named = {fault.field for fault in found_here}
    found_here += [fault for fault in unreadable(row, record, source) if fault.field not in named]
    if found_here:
        return found_here, None
    try:
        messages = read_llava(record, folder=source.folder)
        inputs = model.needed_processor().for_training(messages)
    except Exception as error:
        return [RowFault(row=row, field="model", problem=plainly(error))], None
    found.images += len(inputs.images)
    found.videos += len(inputs.videos)
    found.turns += sum(turn["from"] == "gpt" for turn in record["conversations"])
    found.tokens.append(sum(inputs.token_counts(model.image_tokens, model.video_tokens)))
    found.learnt.append(sum(int((labels >= 0).sum()) for labels in inputs.labels or ()))
    return [], Sample(messages=messages, source=source.label, row=row, record=record)


def unreadable(row: int, record: dict[str, Any], source: DataSource) -> Iterator[RowFault]:
    """Pictures that do not decode, each by its place in the record."""
    for number, picture in enumerate(media_of(record, "image")):
        many = isinstance(record["image"], (list, tuple))
        try:
            (image,) = read_llava({"conversations": [QUESTION], "image": picture}, folder=source.folder)[0]["content"][
                :1
            ]
            assert isinstance(image, Image)
            image.load()
        except Exception as error:
            yield RowFault(row=row, field=f"image[{number}]" if many else "image", problem=plainly(error))


QUESTION = {"from": "human", "value": "?"}
"""A question that a picture alone can stand before."""


def quantiles(values: list[int]) -> dict[str, float]:
    """Mean, least, median, 90th and 99th percentile (nearest rank) and most; empty for no values."""
    if not values:
        return {}
    ordered = sorted(values)
    ranks = {"least": 0, "median": 50, "p90": 90, "p99": 99, "most": 100}
    places = {name: max(0, -(-rank * len(ordered) // 100) - 1) for name, rank in ranks.items()}
    return {"mean": round(sum(ordered) / len(ordered), 1)} | {name: ordered[place] for name, place in places.items()}
