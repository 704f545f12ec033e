"""A run that is asked to stop: by Ctrl-C or SIGTERM, as schedulers send it before they take a machine away.

The step that runs is finished, its state is saved, and the run ends. A second Ctrl-C ends it at once.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """A run that was asked to stop, after its state was saved.

    Attributes:
        signal: its number.
    """

    def __init__(self, message: str, signal: int) -> None:
        super().__init__(message)
        self.signal = signal


class StopRequest:
    """Which signal asked to stop; 0 for none."""

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[int, Any] = {}

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self.restore()  # the next one ends the program

    def listen(self) -> None:
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self)

    def restore(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Take note of signals to stop while the context lasts; outside the main thread, where none arrive, do nothing."""
    request = StopRequest()
    if threading.current_thread() is threading.main_thread():
        request.listen()
    try:
        yield request
    finally:
        request.restore()
