"""In which order the rows of a source come, without end: an order of its own in every epoch.

Rows that can be read alone come in a random order of all of them. Those of a stream come in windows: each window is
read as a whole and shuffled within itself.
"""

import bisect
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from nvila_train.data.order.shuffle import key_of, shuffled
from nvila_train.data.source import SourceError
from nvila_train.data.stored.open_rows import Rows
from nvila_train.data.stored.stream import Stream

WINDOW = 256
"""Rows of a stream that are shuffled together; so many records are in memory, with their media if they hold them."""


class Deck:
    """Sources that are read in place, put behind each other and shuffled as one.

    Args:
        rows: of each source.
        seed: of the orders; None keeps the rows as they are.
    """

    def __init__(self, rows: Sequence[Rows], *, seed: object | None) -> None:
        self.rows = tuple(rows)
        self.seed = seed
        self.ends = list(accumulate(len(each) for each in self.rows))

    def __len__(self) -> int:
        return self.ends[-1]

    def find(self, place: int) -> tuple[int, int]:
        """The source, and the row of it, at ``place`` of the endless order."""
        epoch, place = divmod(place, len(self))
        if self.seed is not None:
            place = shuffled(place, len(self), key=key_of(self.seed, epoch))
        source = bisect.bisect_right(self.ends, place)
        return source, place - (self.ends[source] - len(self.rows[source]))

    def read(self, source: int, row: int) -> Any:
        return self.rows[source][row]

    def number(self, source: int, row: int) -> int:
        """How people count a row."""
        return self.rows[source].number(row)


class Windows:
    """One source that is read from front to back.

    Args:
        stream: its rows.
        seed: of the orders; None keeps the rows as they are.
    """

    def __init__(self, stream: Stream, *, seed: object | None) -> None:
        self.stream, self.seed = stream, seed
        self.length: int | None = None  # known once the end was reached
        self._start, self._epoch = -1, -1
        self._rows: list[Any] = []
        self._order: list[int] = []

    def find(self, place: int) -> tuple[int, int]:
        """The source (there is one), and the row at ``place`` of the endless order."""
        while True:
            epoch, inside = divmod(place, self.length) if self.length else (0, place)
            start = inside - inside % WINDOW
            self._fill(start, epoch)
            if inside - start < len(self._rows):
                return 0, start + self._order[inside - start]
            if start == 0 and not self._rows:
                raise SourceError("a streamed source has no rows: check its path and split")
            if self.length is not None:
                raise SourceError(f"a streamed source had {self.length} rows and now ends before row {inside}")
            self.length = self._whole(start)

    def read(self, source: int, row: int) -> Any:
        """The row, which ``find`` has just told."""
        return self.stream.read(self._rows[row - self._start])

    def number(self, source: int, row: int) -> int:
        """How people count a row: from 1."""
        return row + 1

    def _fill(self, start: int, epoch: int) -> None:
        if (start, epoch) != (self._start, self._epoch):
            self._rows = self.stream.window(start, WINDOW)
            self._start, self._epoch = start, epoch
            key = key_of(self.seed, epoch, start)
            count = len(self._rows)
            self._order = [place if self.seed is None else shuffled(place, count, key=key) for place in range(count)]

    def _whole(self, start: int) -> int:
        """How many rows the stream has, of which the window at ``start`` is not full."""
        if self._rows or start == 0:
            return start + len(self._rows)
        return sum(1 for _ in self.stream)
