"""Work done ahead in other processes, its results in order."""

import signal
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import Any, Generic, TypeVar

from torch.utils.data import DataLoader, Dataset

Key = TypeVar("Key")
Made = TypeVar("Made")
Part = tuple[int, int, int]
"""Step, rank and world: which part of which batch."""

AHEAD = 2
"""Results that each worker process makes before they are asked for."""


class _Calls(Dataset[Any]):
    """A function as torch wants it."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self.make = make

    def __getitem__(self, key: Any) -> Any:
        return self.make(key)


def leave_interrupts(_: int) -> None:
    """Leave Ctrl-C to the process that trains: it finishes its step, for which it may need this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def in_order(make: Callable[[Key], Made], keys: Iterable[Key], *, workers: int) -> Iterator[Made]:
    """``make`` of each key, in the order of the keys, computed by ``workers`` processes (0: by this one).

    The results do not depend on ``workers`` as long as each follows from its key alone.
    """
    if workers == 0:
        return (make(key) for key in keys)
    loader = DataLoader(
        _Calls(make),
        sampler=keys,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=AHEAD,
        worker_init_fn=leave_interrupts,
    )
    return iter(loader)


class PartsAhead(Generic[Made]):
    """``make`` of the parts of batches as they are asked for, those of the coming steps made ahead.

    Which parts of a step this process takes (several, where gradients are accumulated) is learnt from its first step,
    and again whenever another part is asked for than the one that was expected.

    Args:
        make: gives a part; it must follow from step, rank and world alone.
        workers: processes that work ahead; 0 makes each part when it is asked for.
    """

    def __init__(self, make: Callable[[Part], Made], *, workers: int) -> None:
        self.make, self.workers = make, workers
        self._seen: list[Part] = []
        self._expected: Iterator[Part] | None = None
        self._ahead: Iterator[Made] = iter(())

    def __call__(self, part: Part) -> Made:
        if self._expected is None and self.workers and self._seen and part[0] == self._seen[-1][0] + 1:
            parts = tuple(self._seen)
            self._expected = self._coming(part[0], parts)
            self._ahead = in_order(self.make, self._coming(part[0], parts), workers=self.workers)
        if self._expected is not None:
            if next(self._expected) == part:
                return next(self._ahead)
            self._expected, self._ahead, self._seen = None, iter(()), []
        self._seen = [*(seen for seen in self._seen if seen[0] == part[0]), part]
        return self.make(part)

    def _coming(self, step: int, parts: Iterable[Part]) -> Iterator[Part]:
        return ((later, rank, world) for later in count(step) for _, rank, world in parts)
