"""Pretraining of the vision tower: say of every patch what it shows.

A published NVILA starts from SigLIP, which has seen billions of pictures. Ours starts from nothing, and learning to
read through the answers alone stalls: an answer is a handful of labels for a picture of 272 patches. Labels on every
patch are hundreds a picture.

Few samples a step: a picture already gives thousands of labels, and what is scarce is steps.

The loss is a sum over kinds of label of means over labels. What a mean divides by is known once the labels of the whole
step are: so a process makes all its parts of a step at once, and the processes add up how many labels they hold.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from nvila_train.nano.patch_heads import WEIGHTS, asked, label_weights, patch_losses, right
from nvila_train.nano.patch_labels import PatchLabels
from nvila_train.nano.pictures import pictures
from nvila_train.nano.scene_stream import SceneStream
from nvila_train.trainee import Trainee
from nvila_train.trainer import distributed

READ = {"read": "characters", "seen": "objects"}
"""What is logged, and of which kind of label it is the share that is said right."""


@dataclass(frozen=True, kw_only=True)
class Patches:
    """Tiles with the labels of their patches.

    Attributes:
        tiles: ``[n, 3, s, s]``.
        labels: of their patches.
        whole: of the whole step: its ``tiles``, the weights of all labels of each kind, and how many labels each word
            of ``READ`` asks for.
    """

    tiles: Tensor
    labels: PatchLabels
    whole: Mapping[str, float] = field(default_factory=dict)


class PatchTask:
    """Batches of tiles with the labels of their patches.

    The loss counts tiles: mean cross-entropies, weighted by kind, times the tiles of the batch.

    Args:
        samples: scenes of a step, over all processes.
    """

    def __init__(self, *, trainee: Trainee, stream: SceneStream, samples: int) -> None:
        self.trainee, self.stream, self.samples = trainee, stream, samples
        self.made: dict[tuple[int, int, int], Patches] = {}

    def batch(self, step: int, rank: int, world: int) -> Patches:
        if (step, rank, world) not in self.made:
            mine = range(distributed.rank(), world, distributed.world())
            parts = {(step, part, world): self.part(step, part, world) for part in mine}
            whole = distributed.sum_named(sums(parts.values()))
            self.made = {name: replace(part, whole=whole) for name, part in parts.items()}
        return self.made.pop((step, rank, world))

    def part(self, step: int, rank: int, world: int) -> Patches:
        """One part of a step, not knowing of the others."""
        found = [self.scene(number) for number in range(step * self.samples + rank, (step + 1) * self.samples, world)]
        return Patches(
            tiles=torch.cat([scene.tiles for scene in found]),
            labels=PatchLabels.join([scene.labels for scene in found]),
        )

    def scene(self, number: int) -> Patches:
        """The telling tiles of a scene."""
        shown = pictures(self.stream, number, self.trainee.tiler)[0]
        tiles = torch.cat([tiled.tiles for tiled in shown.tiled()])
        labels = shown.labels(patch=self.trainee.patch, all_scales=True)
        keep = telling(labels, seed=number)
        return Patches(tiles=tiles[keep], labels=labels.where(keep))

    def loss(self, batch: Patches) -> tuple[Tensor, int, dict[str, float]]:
        scores = self.trainee.part("patches")(self.trainee.model.vision(batch.tiles))
        losses = patch_losses(scores, batch.labels)
        tiles, whole = batch.whole["tiles"], batch.whole
        total = torch.stack([WEIGHTS[name] * loss / max(1.0, whole[name]) for name, loss in losses.items()]).sum()
        extra: dict[str, float] = {}
        for word, kind in READ.items():
            found = right(scores[kind], getattr(batch.labels, kind))
            extra[word] = found / whole[word] * tiles if whole[word] else float(len(batch.tiles))  # 1 if none is asked
        return total * tiles, len(batch.tiles), extra


def sums(parts: Iterable[Patches]) -> dict[str, float]:
    """What ``Patches.whole`` holds, over some parts."""
    found: dict[str, float] = dict.fromkeys(("tiles", *WEIGHTS, *READ), 0.0)
    for part in parts:
        found["tiles"] += len(part.tiles)
        for kind, weights in label_weights(part.labels).items():
            found[kind] += float(weights.sum(dtype=torch.float64))
        for word, kind in READ.items():
            found[word] += int(asked(getattr(part.labels, kind)).sum())
    return found


def telling(labels: PatchLabels, *, seed: int) -> Tensor:
    """Which tiles to learn from: all with four labels or more, fewer of the emptier ones, never none.

    Shape: bool ``[n]``; the same for the same seed.
    """
    said = (labels.cover > 0).sum(1) + (labels.objects > 0).sum(1) + (labels.characters > 0).sum((1, 2))
    drawn = torch.randint(0, 4, said.shape, generator=torch.Generator().manual_seed(seed))
    keep = said > drawn
    keep[said.argmax()] = True
    return keep
