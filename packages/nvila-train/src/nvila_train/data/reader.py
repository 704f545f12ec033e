"""Going through a dataset: this process's samples, the faulty ones left out, and the place to go on from."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Generic, TypeVar

from nvila_train.data.conversations import ConversationDataset, Sample, SampleError
from nvila_train.data.workers import in_order

Made = TypeVar("Made")


class SkipWarning(UserWarning):
    """A sample that was left out, and why."""


class DataError(RuntimeError):
    """More samples cannot be used than a run accepts."""


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """Stands where a sample was left out; ``reason`` names source, row and field."""

    reason: str


@dataclass(kw_only=True)
class Skips:
    """How many samples this process may leave out, and has left out.

    Args:
        limit: one more ends the run.
    """

    limit: int
    count: int = field(default=0)
    last: str = field(default="", init=False)

    def add(self, skipped: Skipped) -> None:
        """Report a sample.

        Warns: SkipWarning.
        Raises: DataError beyond the limit.
        """
        self.count += 1
        if self.count > self.limit:
            raise DataError(
                f"{self.count} samples cannot be used, the limit is {self.limit}; the last was {skipped.reason}: "
                f"mend them (nvila-train check names every fault) or raise the limit"
            )
        self.last = skipped.reason
        warnings.warn(f"left out {skipped.reason} ({self.count} of at most {self.limit})", SkipWarning, stacklevel=3)

    def together(self, count: int) -> None:
        """Count what all processes left out. Raises: DataError beyond the limit."""
        if count > self.limit:
            raise DataError(
                f"all processes together left out {count} samples, the limit is {self.limit}"
                f"{'; the last here was ' + self.last if self.last else ''}: mend them (nvila-train check names every "
                "fault) or raise the limit"
            )


@dataclass(frozen=True, kw_only=True)
class Making(Generic[Made]):
    """Makes one sample, in whichever process.

    Args:
        dataset: the samples.
        prepare: what becomes of each; None leaves it as it is. An error of it (a picture that does not decode, a
            template that refuses, whatever a library raises) is a fault of the sample.
    """

    dataset: ConversationDataset
    prepare: Callable[[Sample], Made] | None = None

    def __call__(self, number: int) -> Made | Sample | Skipped:
        try:
            sample = self.dataset[number]
        except SampleError as error:
            return Skipped(reason=str(error))
        if self.prepare is None:
            return sample
        try:
            return self.prepare(sample)
        except Exception as error:
            return Skipped(reason=f"{sample.source} row {sample.row}: {plainly(error)}")


def plainly(error: Exception) -> str:
    """What is wrong, in one line; with its type where the sentence is not ours."""
    said = " ".join(str(error).split())
    return said if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {said}"


class Reader(Generic[Made]):
    """This process's samples of a dataset, in order; iterating goes on where the last iteration stopped.

    Rank ``r`` of ``w`` gets the samples ``r``, ``r + w``, ``r + 2 w``, ...

    Args:
        dataset: the samples.
        prepare: what becomes of each, in the worker processes; None gives ``Sample``.
        rank, world: which process this is, of how many.
        workers: processes that make samples ahead; the samples do not depend on it.
        stop: number of samples after which all processes together are done; None goes on for ever.
        skip: samples that this process may leave out.

    Raises: DataError when more than ``skip`` samples cannot be used.
    """

    def __init__(
        self,
        dataset: ConversationDataset,
        prepare: Callable[[Sample], Made] | None = None,
        *,
        rank: int = 0,
        world: int = 1,
        workers: int = 0,
        stop: int | None = None,
        skip: int = 10,
    ) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} is not below world {world}: count processes from 0")
        self.make = Making(dataset=dataset, prepare=prepare)
        self.rank, self.world, self.workers, self.stop = rank, world, workers, stop
        self.skips = Skips(limit=skip)
        self._next = 0

    def __iter__(self) -> Iterator[Any]:
        for number, made in zip(
            self._numbers(), in_order(self.make, self._numbers(), workers=self.workers), strict=True
        ):
            # Before the sample is handed out: whoever has it saves the place after it.
            self._next = number - self.rank + self.world
            if isinstance(made, Skipped):
                self.skips.add(made)
            else:
                yield made

    def _numbers(self) -> Iterable[int]:
        first = self._next + self.rank
        return count(first, self.world) if self.stop is None else range(first, self.stop, self.world)

    def state_dict(self) -> dict[str, int]:
        """The place after the last sample handed out, whatever worker processes have made ahead."""
        return {"next": self._next, "skipped": self.skips.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a place that ``state_dict`` of any rank gave, in a world of any size."""
        self._next, self.skips.count = state["next"], state["skipped"]
