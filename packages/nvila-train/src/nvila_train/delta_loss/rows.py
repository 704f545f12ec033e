"""Which samples go through the language model together.

Samples are taken by length, the longest first. A batch is a grid of rows as long as its first sample; a sample goes
behind others in the first row that has room for it, and begins a row of its own otherwise. Samples of like length so
stand one a row, with next to no padding and plain causal attention; short ones share rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A grid of rows.

    Attributes:
        length: positions of a row.
        rows: the samples of each row, by number, one behind the other.
    """

    length: int
    rows: tuple[tuple[int, ...], ...]

    @property
    def samples(self) -> list[int]:
        """All samples in reading order."""
        return [sample for row in self.rows for sample in row]

    @property
    def shared(self) -> bool:
        """Whether any row holds several samples."""
        return any(len(row) > 1 for row in self.rows)


def batches(lengths: Sequence[int], positions: int) -> list[Batch]:
    """Samples of these lengths in batches of at most ``positions`` positions, or of one sample that is longer.

    Every sample is in exactly one batch; equal lengths stay in order.
    """
    made: list[Batch] = []
    rows: list[list[int]] = []
    room: list[int] = []
    length = 0
    for sample in sorted(range(len(lengths)), key=lambda sample: -lengths[sample]):
        place = next((row for row, free in enumerate(room) if free >= lengths[sample]), None)
        if place is None and rows and (len(rows) + 1) * length > positions:
            made.append(_batch(length, rows))
            rows, room = [], []
        if not rows:
            length = lengths[sample]
        if place is None:
            place = len(rows)
            rows.append([])
            room.append(length)
        rows[place].append(sample)
        room[place] -= lengths[sample]
    return [*made, _batch(length, rows)] if rows else made


def _batch(length: int, rows: Sequence[Sequence[int]]) -> Batch:
    return Batch(length=length, rows=tuple(tuple(row) for row in rows))
