"""Work done ahead in other processes, its results in order."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

from torch.utils.data import DataLoader, Dataset

Made = TypeVar("Made")

AHEAD = 2
"""Results that each worker process makes before they are asked for."""


class _Calls(Dataset[Any]):
    """A function of a number as torch wants it."""

    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make = make

    def __getitem__(self, number: int) -> Any:
        return self.make(number)


def in_order(make: Callable[[int], Made], numbers: Iterable[int], *, workers: int) -> Iterator[Made]:
    """``make`` of each number, in the order of the numbers, computed by ``workers`` processes (0: by this one).

    The results do not depend on ``workers`` as long as each follows from its number alone.
    """
    if workers == 0:
        return (make(number) for number in numbers)
    loader = DataLoader(
        _Calls(make),
        sampler=numbers,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=AHEAD,
    )
    return iter(loader)
