"""Both models over a stream of conversations."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from nvila_model.messages import Conversation
from nvila_model.nvila import NVILA

from nvila_train.delta_loss.answers import LogProbability, log_probabilities
from nvila_train.delta_loss.errors import DeltaLossError
from nvila_train.delta_loss.prepare import Sample, windows

Normalize = Literal["none", "tokens"]

POSITIONS = 2048
"""Of the language model in one batch."""
WINDOW = 2**29
"""Bytes of tiles that are held at once."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """One conversation under both models."""

    large: LogProbability
    small: LogProbability

    def delta(self, normalize: Normalize = "none") -> float:
        """``log p_large - log p_small``; with ``tokens`` each is a mean over the answer's tokens."""
        if normalize == "tokens":
            return self.large.total / self.large.tokens - self.small.total / self.small.tokens
        return self.large.total - self.small.total


def delta_loss(
    conversations: Iterable[Conversation],
    large: NVILA,
    small: NVILA,
    *,
    positions: int = POSITIONS,
    window: int = WINDOW,
    workers: int = 1,
    first: int = 0,
) -> Iterator[Score]:
    """The log-probabilities of the answers of each conversation under two models, in order.

    Each conversation is read once, and goes through each model once.

    Args:
        conversations: messages of content parts, answers included.
        large, small: the models, in evaluation mode.
        positions: of the language model in one batch; more uses more memory, and a GPU better.
        window: bytes of tiles that are held at once; samples are sorted by length within.
        workers: threads that read files and cut tiles.
        first: number of the first conversation, as errors name it.

    Raises: DeltaLossError for a conversation that cannot be read, has no answer, or exceeds a model's context.
    Source: NVILA, section 2.2.
    """
    if positions < 1 or window < 1 or workers < 1:
        raise DeltaLossError(
            f"positions {positions}, window {window} and workers {workers} must all be at least 1: raise them"
        )
    models = (large, small)
    processors = [model.needed_processor() for model in models]
    for samples in windows(conversations, processors, limit=window, first=first, workers=workers):
        for index, model in enumerate(models):
            check_lengths(model, samples, index)
        found = [
            log_probabilities(model, [sample.inputs[index] for sample in samples], positions=positions)
            for index, model in enumerate(models)
        ]
        for ours, theirs in zip(*found, strict=True):
            yield Score(large=ours, small=theirs)


def check_lengths(model: NVILA, samples: Iterable[Sample], index: int) -> None:
    """Raises: DeltaLossError for a sample that does not fit the context of model number ``index``."""
    for sample in samples:
        (length,) = sample.inputs[index].token_counts(model.image_tokens, model.video_tokens)
        if length > model.context_length:
            raise DeltaLossError(
                f"row {sample.number} takes {length} positions > {model.context_length} of the "
                f"{('large', 'small')[index]} model: shorten it, or lower the tiles or frames"
            )
