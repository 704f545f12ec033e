"""Which sequences go through the language model together.

A sequence is a sample, or several that begin alike (``families``). Sequences are taken by length, the longest first.
A batch is a grid of rows as long as its first sequence; one goes behind others in the first row that has room for it,
and begins a row of its own otherwise. Sequences of like length so stand one a row, with next to no padding and plain
causal attention; short ones share rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Batch:
    """A grid of rows.

    Attributes:
        length: positions of a row.
        rows: the sequences of each row, by number, one behind the other.
    """

    length: int
    rows: tuple[tuple[int, ...], ...]


def batches(lengths: Sequence[int], positions: int) -> list[Batch]:
    """Sequences of these lengths in batches of at most ``positions`` positions, or of one sequence that is longer.

    Every one is in exactly one batch; equal lengths stay in order.
    """
    made: list[Batch] = []
    rows: list[list[int]] = []
    room: list[int] = []
    length = 0
    for sequence in sorted(range(len(lengths)), key=lambda sequence: -lengths[sequence]):
        place = next((row for row, free in enumerate(room) if free >= lengths[sequence]), None)
        if place is None and rows and (len(rows) + 1) * length > positions:
            made.append(_batch(length, rows))
            rows, room = [], []
        if not rows:
            length = lengths[sequence]
        if place is None:
            place = len(rows)
            rows.append([])
            room.append(length)
        rows[place].append(sequence)
        room[place] -= lengths[sequence]
    return [*made, _batch(length, rows)] if rows else made


def _batch(length: int, rows: Sequence[Sequence[int]]) -> Batch:
    return Batch(length=length, rows=tuple(tuple(row) for row in rows))
