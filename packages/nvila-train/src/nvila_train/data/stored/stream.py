"""Rows that come only one after the other."""

import os
from collections.abc import Callable, Iterator
from typing import Any

from nvila_train.data.source import SourceError


class Stream:
    """Rows of a stream by number: asked for in growing order, each is read once; a step back starts anew.

    Args:
        open_at: gives an iterator over the rows from a number on.
        read: makes a record of a row.
    """

    def __init__(self, open_at: Callable[[int], Iterator[Any]], read: Callable[[Any], Any] = lambda row: row) -> None:
        self.open_at, self.read = open_at, read
        self._rows: Iterator[Any] = iter(())
        self._next = 0
        self._process = -1

    def window(self, start: int, count: int) -> list[Any]:
        """Rows ``start`` to ``start + count``, not yet made records; fewer at the end of the stream."""
        # A worker process inherits the iterator of its parent, whose place it must not move.
        if start < self._next or self._process != os.getpid():
            self._rows, self._next, self._process = self.open_at(start), start, os.getpid()
        rows: list[Any] = []
        try:
            while self._next < start:
                if next(self._rows, None) is None:
                    return []
                self._next += 1
            for row in self._rows:
                rows.append(row)
                if len(rows) == count:
                    break
        except SourceError:
            raise
        except Exception as error:  # whatever the libraries underneath raise
            place = self._next + len(rows)
            raise SourceError(f"a streamed source ends at row {place + 1}: {type(error).__name__}: {error}") from None
        self._next += len(rows)
        return rows

    def __iter__(self) -> Iterator[Any]:
        """All rows from the first on, not yet made records."""
        return self.open_at(0)
