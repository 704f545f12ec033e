"""Conversations by number: what every training batch, score and check is made from.

Sample ``number`` depends on the sources, the seed and the number alone. How many processes and worker processes there
are, and where a run was stopped, therefore change nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvila_model.inputs import Message, read_llava
from torch.utils.data import Dataset

from nvila_train.data.order.epochs import Deck, Windows
from nvila_train.data.order.mixture import Mixture
from nvila_train.data.record import RecordError, as_record
from nvila_train.data.record_faults import faults
from nvila_train.data.source import DataSource, SourceError
from nvila_train.data.stored.open_rows import open_rows
from nvila_train.data.stored.stream import Stream


class SampleError(ValueError):
    """A sample that cannot be used; the message names its source, row and field."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One conversation and where it is from.

    Attributes:
        messages: for ``Processor.for_training``; media are named, not opened.
        source: name of the source.
        row: in the source, as people count: the number of its line, or from 1.
        record: the LLaVA record.
    """

    messages: list[Message]
    source: str
    row: int
    record: Mapping[str, Any]


class ConversationDataset(Dataset[Sample]):
    """Conversations of one source or a mixture, by number and without end.

    A map-style dataset of torch: ``dataset[number]``. After the last row of a source its next epoch begins, in another
    order. ``Reader`` goes through it with ranks, worker processes and a place to resume from.

    Args:
        sources: paths, or ``DataSource`` with weights, names and folders of media.
        seed: of all orders.
        shuffle: False keeps the rows in their order; a mixture is drawn by weight all the same.

    Raises: SourceError if a source cannot be opened, or some have a weight and others none.
    """

    def __init__(
        self,
        sources: str | Path | DataSource | Sequence[str | Path | DataSource],
        *,
        seed: int = 0,
        shuffle: bool = True,
    ) -> None:
        given = [sources] if isinstance(sources, (str, Path, DataSource)) else sources
        self.sources = tuple(each if isinstance(each, DataSource) else DataSource(path=str(each)) for each in given)
        check_together(self.sources)
        rows = [open_rows(source) for source in self.sources]
        tables = [each for each in rows if not isinstance(each, Stream)]
        weights = [source.weight for source in self.sources if source.weight is not None]
        self.mixture = Mixture(weights, seed=seed) if weights else None
        if weights:
            keys = [f"{seed}/{source.label}" if shuffle else None for source in self.sources]
            self._decks = [deck([each], seed=key) for each, key in zip(rows, keys, strict=True)]
        elif len(tables) == len(rows) or len(rows) == 1:
            self._decks = [deck(rows, seed=str(seed) if shuffle else None)]
        else:
            raise SourceError("a streamed source has no known length: give every source a weight")

    def __len__(self) -> int:
        """Rows of all sources together. Raises: TypeError for a stream."""
        lengths = [len(each) for each in self._decks if isinstance(each, Deck)]
        if len(lengths) < len(self._decks):
            raise TypeError("a streamed source has no known length")
        return sum(lengths)

    def __getitem__(self, number: int) -> Sample:
        """Sample ``number``. Raises: SampleError."""
        which, place = self.mixture.place(number) if self.mixture else (0, number)
        part, row = self._decks[which].find(place)
        source = self.sources[which + part]  # a mixture has a deck a source; otherwise one deck holds all sources
        deck = self._decks[which]
        return read_sample(lambda: deck.read(part, row), source, deck.number(part, row))


def read_sample(read: Callable[[], Any], source: DataSource, row: int) -> Sample:
    """The stored row that ``read`` gives as a sample. Raises: SampleError with its first fault.

    Args:
        row: its number, as people count.
    """
    try:
        record = read_record(read)
        for fault in faults(record, folder=source.folder):
            raise RecordError(fault.field, fault.problem)
        messages = read_llava(record, folder=source.folder)
    except ValueError as error:
        raise SampleError(f"{source.label} row {row}: {error}") from None
    return Sample(messages=messages, source=source.label, row=row, record=record)


def read_record(read: Callable[[], Any]) -> dict[str, Any]:
    """The stored row that ``read`` gives as a record. Raises: RecordError, whatever a library raised."""
    try:
        return as_record(read())
    except (RecordError, SourceError):
        raise
    except RecursionError:
        raise RecordError("row", "is nested too deeply for a record") from None
    except Exception as error:
        raise RecordError("row", f"cannot be read: {type(error).__name__}: {error}") from None


def deck(rows: Sequence[Any], *, seed: str | None) -> Deck | Windows:
    return Windows(rows[0], seed=seed) if isinstance(rows[0], Stream) else Deck(rows, seed=seed)


def check_together(sources: Sequence[DataSource]) -> None:
    """Refuse sources that cannot be told apart or weighed against each other. Raises: SourceError."""
    if not sources:
        raise SourceError("no source of data: give at least one path")
    labels = [source.label for source in sources]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise SourceError(f"two sources are called {twice[0]!r}: give each a name of its own")
    bare = [source.label for source in sources if source.weight is None]
    if bare and len(bare) < len(sources):
        raise SourceError(f"source {bare[0]!r} has no weight but others have: give every source one, or none")
