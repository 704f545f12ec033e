"""Samples that begin alike: what they share goes through the language model once.

Questions about one picture, or about one text, stand behind the same tokens, and causal attention makes the same of
them whatever follows. So such samples become one sequence, what they share and then the rest of each
(``nvila_train.packing``).

A family is not made at any price. Attention runs over the whole sequence, most of it masked, and this grows with the
square of its length; a sequence is therefore never longer than two samples, and what is shared is at least half of
each. A system prompt that all samples have does not make a family of all of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from nvila_model import ModelInputs
from nvila_model.inputs import IGNORE
from nvila_model.network import fuse
from torch import Tensor

from nvila_train.packing import Branches


@dataclass(frozen=True, kw_only=True)
class Family(Branches):
    """Samples in one sequence.

    Attributes:
        samples: their numbers.
    """

    samples: tuple[int, ...]


def families(beginnings: Sequence[Tensor], lengths: Sequence[int], positions: int) -> list[Family]:
    """Every sample in one family, in the order of their beginnings.

    Args:
        beginnings: what each may share, as ``beginnings`` gives it.
        lengths: of the samples.
        positions: of the longest family, unless it is one sample.
    """
    found: list[Family] = []
    # In the order of any encoding, those with a common beginning are neighbours.
    for sample in sorted(range(len(lengths)), key=lambda sample: beginnings[sample].numpy().tobytes()):
        if found and (larger := _joined(found[-1], sample, beginnings, lengths, positions)):
            found[-1] = larger
        else:
            found.append(Family(samples=(sample,), common=0, rests=(lengths[sample],)))
    return found


def _joined(
    family: Family, sample: int, beginnings: Sequence[Tensor], lengths: Sequence[int], positions: int
) -> Family | None:
    """The family with one more; None if that does not pay, or does not fit."""
    common = alike(beginnings[family.samples[0]], beginnings[sample])
    if len(family.samples) > 1:
        common = min(common, family.common)
    samples = (*family.samples, sample)
    longest = max(lengths[member] for member in samples)
    larger = Family(samples=samples, common=common, rests=tuple(lengths[member] - common for member in samples))
    return larger if 2 * common >= longest and larger.length <= min(positions, 2 * longest) else None


def alike(a: Tensor, b: Tensor) -> int:
    """How many values two rows have in common from the start on."""
    shorter = min(len(a), len(b))
    return int((a[:shorter] == b[:shorter]).cumprod(0).sum())


def beginnings(samples: Sequence[ModelInputs], media: Mapping[int, Any]) -> list[Tensor]:
    """What of each sample others may share: ids of its text, and in place of a medium's tokens a number of its own.

    It ends in front of the position that predicts the first label, for one state predicts one token.

    Args:
        media: what stands in place of every picture and clip, by the identity of the medium.

    Shapes: -> int64 ``[t]`` each, in positions of the language model.
    """
    numbers = {number: -1 - place for place, number in enumerate(media)}

    def named(medium: Any, tokens: Tensor) -> Tensor:
        return torch.full((len(tokens), 1), numbers[id(medium)])

    found: list[Tensor] = []
    for inputs in samples:
        images = [[named(image, tokens) for tokens in media[id(image)]] for image in inputs.images]
        videos = [named(video, media[id(video)]) for video in inputs.videos]
        fused = fuse(inputs, [inputs.input_ids[0][:, None]], images, videos, side="right")
        assert fused.labels is not None
        first = int((fused.labels[0, 1:] != IGNORE).long().argmax())
        found.append(fused.embeds[0, :first, 0])
    return found


def segments_of(row: Sequence[Family]) -> tuple[Tensor, Tensor, Tensor]:
    """Where each position of a row of families is, and at which segments it may look.

    Shapes: -> int64 ``[t]`` each: its position in its sample, its segment, and the segment that its family shares.
    """
    starts = accumulate((1 + len(family.samples) for family in row), initial=0)
    segments: list[Tensor] = []
    shared: list[Tensor] = []
    for start, family in zip(starts, row, strict=False):
        segments.append(start + family.segments())
        shared.append(torch.full((family.length,), start))
    return torch.cat([family.positions() for family in row]), torch.cat(segments), torch.cat(shared)
