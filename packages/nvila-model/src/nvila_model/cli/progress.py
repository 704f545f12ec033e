"""Progress on standard error for whatever takes more than a second."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Timer

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

PATIENCE = 1.0
"""Seconds before anything is shown."""


class Stopwatch:
    """Seconds that each stage took, by name, in order; stages of the same name add up."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, doing: str | None = None) -> Iterator[None]:
        """Time a stage; on a terminal, show what is being done (if said) once it takes more than a second."""
        started = time.perf_counter()
        try:
            with spinner(doing):
                yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


@contextmanager
def spinner(doing: str | None) -> Iterator[None]:
    """Show what is being done on a terminal, if it is said and takes longer than ``PATIENCE``."""
    console = Console(stderr=True)
    if doing is None or not console.is_terminal:
        yield
        return
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    progress = Progress(*columns, console=console, transient=True)
    progress.add_task(doing, total=None)
    timer = Timer(PATIENCE, progress.start)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        progress.stop()
