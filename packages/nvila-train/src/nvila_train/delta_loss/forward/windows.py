"""Conversations become model inputs: read once for both models, in windows of bounded memory.

Samples are batched by length, so many have to be ready before the first is scored; a window ends where their tiles
would take more memory than allowed. A picture that several samples of a window show is kept once. With threads to
read, the next window is made while this one is scored.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nvila_model import Image, ModelInputs, Processor, Video
from nvila_model.inputs import IGNORE, Conversation, TiledVideo, Tokenizer, read_conversation
from nvila_tiling import TiledImage

from nvila_train.data.reader import plainly
from nvila_train.delta_loss.choices import DeltaLossError

AT_ONCE = 16
"""Conversations that worker threads prepare before the window is looked at again."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sample:
    """One conversation, ready for each model.

    Attributes:
        number: its place in the stream.
        inputs: one row with labels for every model, the same object where their processors agree.
        images, videos: what names each picture and clip, in reading order: its path, or a hash of its bytes; None
            for one without a name.
    """

    number: int
    inputs: tuple[ModelInputs, ...]
    images: tuple[Any, ...]
    videos: tuple[Any, ...]

    @property
    def bytes(self) -> int:
        """What its tiles take."""
        distinct = {id(inputs): inputs for inputs in self.inputs}.values()
        return sum(medium.tiles.nbytes for inputs in distinct for medium in (*inputs.images, *inputs.videos))


class SharedMedia:
    """The tiles of a window: a picture or clip of one path, or of the same bytes, in several samples is kept once."""

    def __init__(self) -> None:
        self.bytes = 0
        self._kept: dict[Any, TiledImage | TiledVideo] = {}

    def share(self, sample: Sample) -> Sample:
        """The sample, with tiles that an earlier one already holds in place of its own."""
        found: dict[int, ModelInputs] = {}
        for model, inputs in enumerate(sample.inputs):
            if id(inputs) not in found:
                images = self._keep(model, sample.images, inputs.images)
                found[id(inputs)] = replace(
                    inputs, images=images, videos=self._keep(model, sample.videos, inputs.videos)
                )
        return replace(sample, inputs=tuple(found[id(inputs)] for inputs in sample.inputs))

    def _keep(self, model: int, names: Sequence[Any], media: Sequence[Any]) -> tuple[Any, ...]:
        # A clip that is taken as images leaves more pictures than names: then none is known.
        names = names if len(names) == len(media) else [None] * len(media)
        kept: list[Any] = []
        for name, medium in zip(names, media, strict=True):
            key = id(medium) if name is None else (model, name, medium.plan)
            if key not in self._kept:
                self._kept[key] = medium
                self.bytes += medium.tiles.nbytes
            kept.append(self._kept[key])
        return tuple(kept)


def windows(
    conversations: Iterable[Conversation],
    processors: Sequence[Processor],
    *,
    limit: int,
    first: int = 0,
    workers: int = 1,
) -> Iterator[list[Sample]]:
    """Prepared samples in order, as many at once as ``limit`` bytes of tiles hold, and at least one.

    Args:
        processors: one for each model.
        first: number of the first conversation.
        workers: threads that read files and cut tiles.

    Raises: DeltaLossError naming the number of a conversation that cannot be used.
    """
    window: list[Sample] = []
    shared = SharedMedia()
    for sample in _prepared(conversations, processors, first, workers):
        if window and shared.bytes + sample.bytes > limit:
            yield window
            window, shared = [], SharedMedia()
        window.append(shared.share(sample))
    if window:
        yield window


def ahead(made: Iterator[list[Sample]]) -> Iterator[list[Sample]]:
    """The same windows, each given while a thread makes the next; two are in memory."""
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
        coming = pool.submit(next, made, None)
        while (window := coming.result()) is not None:
            coming = pool.submit(next, made, None)
            yield window


def _prepared(
    conversations: Iterable[Conversation], processors: Sequence[Processor], first: int, workers: int
) -> Iterator[Sample]:
    alike = [agree(processor, processors[0]) for processor in processors]
    numbered = enumerate(conversations, first)
    if workers == 1:
        for number, conversation in numbered:
            yield prepare(number, conversation, processors, alike)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="prepare") as pool:
        while group := list(islice(numbered, AT_ONCE)):
            yield from pool.map(lambda pair: prepare(pair[0], pair[1], processors, alike), group)


def prepare(number: int, conversation: Conversation, processors: Sequence[Processor], alike: Sequence[bool]) -> Sample:
    """One conversation for every processor.

    Args:
        alike: for each processor whether it makes the same inputs as the first.

    Raises: DeltaLossError if it cannot be read, or has no answer.
    """
    try:
        one = processors[0].for_training(conversation)
        inputs = tuple(
            one if same else processor.for_training(conversation)
            for processor, same in zip(processors, alike, strict=True)
        )
    except Exception as error:
        raise DeltaLossError(f"row {number}: {plainly(error)}") from None
    if any(answer_tokens(each) == 0 for each in inputs):
        raise DeltaLossError(f"row {number} has no answer to score: give it a turn of the assistant")
    parts = [part for turn in read_conversation(conversation) for part in turn.parts]
    return Sample(
        number=number,
        inputs=inputs,
        images=tuple(name_of(part.source) for part in parts if isinstance(part, Image)),
        videos=tuple(name_of(part.source) for part in parts if isinstance(part, Video)),
    )


def name_of(source: Any) -> str | Path | bytes | None:
    """What is the same of two media only if they are, and small, so that a window does not hold their files."""
    match source:
        case str() | Path():
            return source
        case bytes():
            return hashlib.sha256(source).digest()
        case _:
            return None


def answer_tokens(inputs: ModelInputs) -> int:
    """Labels of a single row that are predicted; its first token is not."""
    assert inputs.labels is not None
    return int((inputs.labels[0][1:] != IGNORE).sum())


def agree(a: Processor, b: Processor) -> bool:
    """Whether two processors make the same inputs of the same conversation."""
    if a is b:
        return True
    tiling = [(p.tiler, p.untiled, p.video, p.tile_text, p.strip_messages, p.tile_budget, p.parity) for p in (a, b)]
    return tiling[0] == tiling[1] and _written(a.tokenizer) == _written(b.tokenizer)


def _written(tokenizer: Tokenizer) -> dict[str, bytes]:
    """A tokenizer as its files, which hold all that it does."""
    with TemporaryDirectory() as folder:
        tokenizer.save(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}
