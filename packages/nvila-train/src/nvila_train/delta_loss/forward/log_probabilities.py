"""Log-probabilities of the answers of many samples under one model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from nvila_model import NVILA, ModelInputs
from nvila_model.inputs import IGNORE
from nvila_model.network import VISION_BATCH, fuse, padded, segment_mask
from torch import Tensor

from nvila_train.delta_loss.forward.batches import batches
from nvila_train.delta_loss.forward.distinct_tiles import distinct
from nvila_train.delta_loss.forward.families import Family, beginnings, families, segments_of
from nvila_train.delta_loss.forward.windows import answer_tokens

SCORED_AT_ONCE = 2048
"""Positions whose scores over the vocabulary exist at the same time."""
TILES_AT_ONCE = 128
"""Tiles that are copied behind each other; more would leave a processor's caches."""
PATCHES_AT_ONCE = 2048
"""Patches that go through a vision tower at once, or those of ``VISION_BATCH`` tiles: small towers like more tiles."""

Features = dict[int, list[Tensor]]
"""What a vision tower makes of each tile of a picture or clip, ``[patches, c]``, by the identity of the medium."""


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
    sequences = families(beginnings(samples, media), lengths, positions)
    found: dict[int, LogProbability] = {}
    for batch in batches([sequence.length for sequence in sequences], positions):
        rows = [[sequences[number] for number in row] for row in batch.rows]
        scored = [sample for row in rows for family in row for sample in family.samples]
        losses = _losses(model, samples, media, rows)
        counts = [answer_tokens(samples[sample]) for sample in scored]
        for sample, part in zip(scored, losses.cpu().double().split(counts), strict=True):
            found[sample] = LogProbability(total=-float(part.sum()), tokens=len(part))
    return [found[sample] for sample in range(len(samples))]


@torch.no_grad()
def features(model: NVILA, samples: Sequence[ModelInputs]) -> Features:
    """Every picture and clip through the vision tower, each tile once, in however many of them it is."""
    media = {id(medium): medium for inputs in samples for medium in (*inputs.images, *inputs.videos)}
    tiles, places = distinct(medium.tiles for medium in media.values())
    seen: list[Tensor] = []
    if tiles:
        patches = (tiles[0].shape[-1] // model.vision.patch_size) ** 2
        at_once = max(VISION_BATCH, PATCHES_AT_ONCE // patches)
        for start in range(0, len(tiles), at_once):
            seen.extend(model.vision(torch.stack(tiles[start : start + at_once]).to(model.device)))
    return {number: [seen[place] for place in own] for number, own in zip(media, places, strict=True)}


def encoded(model: NVILA, samples: Sequence[ModelInputs], seen: Features) -> dict[int, Any]:
    """What stands in place of every picture and clip, by the identity of the medium."""
    images = {id(image): image for inputs in samples for image in inputs.images}
    videos = {id(video): video for inputs in samples for video in inputs.videos}
    tokens: dict[int, Any] = {}
    for media, encode in ((images, model.encode_images), (videos, model.encode_video)):
        for some in _portions([*media.values()]):
            known = torch.stack([tile for medium in some for tile in seen[id(medium)]])
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


def _losses(
    model: NVILA, samples: Sequence[ModelInputs], media: dict[int, Any], rows: Sequence[Sequence[Family]]
) -> Tensor:
    """The loss of every label of a batch in reading order, float32 ``[labels]``."""
    embeds: list[Tensor] = []
    labels: list[Tensor] = []
    for row in rows:
        sequences: list[tuple[Tensor, ...]] = []
        for family in row:
            members = zip(*(read(model, samples[sample], media) for sample in family.samples), strict=True)
            sequences.append(tuple(family.join(pieces) for pieces in members))
        embedded, learnt = zip(*sequences, strict=True)
        embeds.append(torch.cat(embedded))
        labels.append(torch.cat(learnt))
    targets = padded(labels, IGNORE, "right")[:, 1:]
    learnt = targets != IGNORE
    alone = all(len(row) == len(row[0].samples) == 1 for row in rows)
    positions, mask = (None, None) if alone else _attention(rows, model.device)
    states = model.llm(padded(embeds, 0.0, "right"), positions=positions, mask=mask, wanted=F.pad(learnt, (0, 1)))
    pairs = zip(states.split(SCORED_AT_ONCE), targets[learnt].split(SCORED_AT_ONCE), strict=True)
    return torch.cat([F.cross_entropy(model.llm.logits(h).float(), t, reduction="none") for h, t in pairs])


def _attention(rows: Sequence[Sequence[Family]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Positions from 0 in each sample, and a mask that keeps attention within it.

    Padding looks at padding, so that no softmax runs over nothing.

    Shapes: -> int64 ``[rows, length]``, bool ``[rows, 1, length, length]``.
    """
    positions, segments, shared = zip(*map(segments_of, rows), strict=True)
    mask = segment_mask(padded(segments, -1, "right"), padded(shared, -1, "right"))
    return padded(positions, 0, "right").to(device), mask.to(device)
