"""Both models over a stream of conversations.

What computes is imported when the first conversation is: the package's face names ``delta_loss``, and must not wait for
torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nvila_train.delta_loss.choices import DeltaLossError, Normalize

if TYPE_CHECKING:
    from nvila_model import NVILA
    from nvila_model.inputs import Conversation

    from nvila_train.delta_loss.forward.log_probabilities import LogProbability
    from nvila_train.delta_loss.forward.windows import Sample

POSITIONS = 2048
"""Of the language model in one batch."""
WINDOW = 2**29
"""Bytes of tiles that are scored together."""


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

    Each conversation is read once, and goes through each model once; through the vision tower once for both, if both
    have the same.

    Args:
        conversations: messages of content parts, answers included.
        large, small: the models, in evaluation mode.
        positions: of the language model in one batch; more uses more memory, and a GPU better.
        window: bytes of tiles that are scored together; samples are sorted by length within.
        workers: threads that read files and cut tiles; with several, the next window is read while one is scored.
        first: number of the first conversation, as errors name it.

    Raises: DeltaLossError for a conversation that cannot be read, has no answer, or exceeds a model's context.
    Source: NVILA, section 2.2.
    """
    if positions < 1 or window < 1 or workers < 1:
        raise DeltaLossError(
            f"positions {positions}, window {window} and workers {workers} must all be at least 1: raise them"
        )
    from nvila_train.delta_loss.forward.log_probabilities import features, log_probabilities
    from nvila_train.delta_loss.forward.windows import ahead, windows

    models = (large, small)
    processors = [model.needed_processor() for model in models]
    alike = same_tower(large, small)
    made = windows(conversations, processors, limit=window, first=first, workers=workers)
    for samples in ahead(made) if workers > 1 else made:
        for index, model in enumerate(models):
            check_lengths(model, samples, index)
        ours, theirs = ([sample.inputs[index] for sample in samples] for index in range(2))
        seen = features(large, ours)
        known = seen if alike and ours[0] is theirs[0] else features(small, theirs)
        found = (
            log_probabilities(large, ours, seen, positions=positions),
            log_probabilities(small, theirs, known, positions=positions),
        )
        for one, other in zip(*found, strict=True):
            yield Score(large=one, small=other)


def same_tower(a: NVILA, b: NVILA) -> bool:
    """Whether two models see alike: the same description of the vision tower, and the same weights on one device.

    So it is where models were trained with a frozen tower.
    """
    import torch

    if a.config is None or b.config is None or a.config.vision != b.config.vision or a.device != b.device:
        return False
    if a.config.mm_vision_select_layer != b.config.mm_vision_select_layer:
        return False
    ours, theirs = (
        {name: value for name, value in model.state_dict().items() if name.startswith("vision.")} for model in (a, b)
    )
    return ours.keys() == theirs.keys() and all(
        value.dtype == theirs[name].dtype and torch.equal(value, theirs[name]) for name, value in ours.items()
    )


def check_lengths(model: NVILA, samples: Iterable[Sample], index: int) -> None:
    """Raises: DeltaLossError for a sample that does not fit the context of model number ``index``."""
    for sample in samples:
        (length,) = sample.inputs[index].token_counts(model.image_tokens, model.video_tokens)
        if length > model.context_length:
            raise DeltaLossError(
                f"row {sample.number} takes {length} positions > {model.context_length} of the "
                f"{('large', 'small')[index]} model: shorten it, or lower the tiles or frames"
            )
