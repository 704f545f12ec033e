"""Log-probabilities of the answers of many samples under one model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from nvila_model.fusion import IGNORE, fuse, padded
from nvila_model.inputs import ModelInputs
from nvila_model.nvila import NVILA
from torch import Tensor

from nvila_train.delta_loss.prepare import answer_tokens
from nvila_train.delta_loss.rows import Batch, batches

SCORED_AT_ONCE = 2048
"""Positions whose scores over the vocabulary exist at the same time."""
TILES_AT_ONCE = 128
"""Tiles that are copied behind each other; more would leave a processor's caches."""

Features = dict[int, Tensor]
"""What a vision tower makes of a picture's or clip's tiles, ``[tiles, patches, c]``, by the identity of the medium."""


@dataclass(frozen=True, kw_only=True)
class LogProbability:
    """Of the answers of one sample.

    Attributes:
        total: sum of the tokens' natural logarithms, in float64.
        tokens: how many tokens the answers have, those that end their turns included.
    """

    total: float
    tokens: int


@torch.no_grad()
def log_probabilities(
    model: NVILA, samples: Sequence[ModelInputs], seen: Features, *, positions: int
) -> list[LogProbability]:
    """Each sample's log-probability, in order.

    Every target is the token itself; the bell curve that training puts over time tokens is no probability.

    Args:
        samples: inputs of one row each, with labels.
        seen: their pictures and clips as ``features`` gives them, or as a model with the same vision tower did.
        positions: of the language model in one batch, padding included.
    """
    media = encoded(model, samples, seen)
    lengths = [inputs.token_counts(model.image_tokens, model.video_tokens)[0] for inputs in samples]
    found: dict[int, LogProbability] = {}
    for batch in batches(lengths, positions):
        losses = _losses(model, [samples[sample] for sample in batch.samples], media, batch)
        counts = [answer_tokens(samples[sample]) for sample in batch.samples]
        for sample, part in zip(batch.samples, losses.cpu().double().split(counts), strict=True):
            found[sample] = LogProbability(total=-float(part.sum()), tokens=len(part))
    return [found[sample] for sample in range(len(samples))]


@torch.no_grad()
def features(model: NVILA, samples: Sequence[ModelInputs]) -> Features:
    """Every picture and clip through the vision tower; one that is the same object in several samples goes once."""
    media = {id(medium): medium for inputs in samples for medium in (*inputs.images, *inputs.videos)}
    found: Features = {}
    for some in _portions([*media.values()]):
        seen = model.features(torch.cat([medium.tiles for medium in some]))
        found.update(zip(map(id, some), seen.split([len(medium.tiles) for medium in some]), strict=True))
    return found


def encoded(model: NVILA, samples: Sequence[ModelInputs], seen: Features) -> dict[int, Any]:
    """What stands in place of every picture and clip, by the identity of the medium."""
    images = {id(image): image for inputs in samples for image in inputs.images}
    videos = {id(video): video for inputs in samples for video in inputs.videos}
    tokens: dict[int, Any] = {}
    for media, encode in ((images, model.encode_images), (videos, model.encode_video)):
        for some in _portions([*media.values()]):
            known = torch.cat([seen[id(medium)] for medium in some])
            tokens.update(zip(map(id, some), encode(some, known), strict=True))
    return tokens


def _portions(media: Sequence[Any]) -> Iterator[list[Any]]:
    """Pictures and clips in order, as many at once as have ``TILES_AT_ONCE`` tiles, and at least one."""
    portion: list[Any] = []
    tiles = 0
    for medium in media:
        if portion and tiles + len(medium.tiles) > TILES_AT_ONCE:
            yield portion
            portion, tiles = [], 0
        portion.append(medium)
        tiles += len(medium.tiles)
    if portion:
        yield portion


def read(model: NVILA, inputs: ModelInputs, media: dict[int, Any]) -> tuple[Tensor, Tensor]:
    """One sample as the language model reads it, of what ``encoded`` gives.

    Shapes: -> embeddings ``[t, d]``, labels int64 ``[t]``, ``IGNORE`` where nothing is predicted.
    """
    text = [model.llm.embed_tokens(inputs.input_ids[0].to(model.device))]
    images = [media[id(image)] for image in inputs.images]
    videos = [media[id(video)] for video in inputs.videos]
    fused = fuse(inputs, text, images, videos, side="right")
    assert fused.labels is not None
    fused.labels[0, 0] = IGNORE  # the sample before it would predict it
    return fused.embeds[0], fused.labels[0]


def _losses(model: NVILA, samples: Sequence[ModelInputs], media: dict[int, Any], batch: Batch) -> Tensor:
    """The loss of every label of a batch in reading order, float32 ``[labels]``."""
    embeds: list[Tensor] = []
    labels: list[Tensor] = []
    for inputs in samples:
        embedded, learnt = read(model, inputs, media)
        embeds.append(embedded)
        labels.append(learnt)
    targets = _in_rows(labels, batch, IGNORE)[:, 1:]
    positions, mask = _apart([len(row) for row in embeds], batch, model.device) if batch.shared else (None, None)
    hidden = model.llm(_in_rows(embeds, batch, 0.0), positions=positions, mask=mask)
    learnt = targets != IGNORE
    pairs = zip(hidden[:, :-1][learnt].split(SCORED_AT_ONCE), targets[learnt].split(SCORED_AT_ONCE), strict=True)
    return torch.cat([F.cross_entropy(model.llm.logits(h).float(), t, reduction="none") for h, t in pairs])


def _in_rows(pieces: Sequence[Tensor], batch: Batch, value: float) -> Tensor:
    """One piece a sample to the batch's grid, padded on the right.

    Shapes: ``[t, ...]`` each -> ``[rows, length, ...]``.
    """
    left = iter(pieces)
    return padded([torch.cat([next(left) for _ in row]) for row in batch.rows], value, "right")


def _apart(lengths: Sequence[int], batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    """Positions from 0 in each sample, and a mask that keeps attention within it.

    Padding looks at padding, so that no softmax runs over nothing.

    Shapes: -> int64 ``[rows, length]``, bool ``[rows, 1, length, length]``.
    """
    places = _in_rows([torch.arange(length) for length in lengths], batch, 0)
    owners = _in_rows([torch.full((length,), number) for number, length in enumerate(lengths)], batch, -1)
    same = owners[:, :, None] == owners[:, None, :]
    return places.to(device), same.tril()[:, None].to(device)
