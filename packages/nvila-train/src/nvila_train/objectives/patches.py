"""Pretraining of the vision tower: say of every patch what it shows.

A published NVILA starts from SigLIP, which has seen billions of pictures. Ours starts from nothing, and learning to
read through the answers alone stalls: an answer is a handful of labels for a picture of 272 patches. Labels on every
patch are hundreds a picture.

Few samples a step: a picture already gives thousands of labels, and what is scarce is steps.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from nvila_train.patch_heads import WEIGHTS, accuracy, patch_losses
from nvila_train.samples import pictures
from nvila_train.stream import SceneStream
from nvila_train.targets import PatchLabels
from nvila_train.trainee import Trainee


@dataclass(frozen=True, kw_only=True)
class PatchTask:
    """Batches of tiles with the labels of their patches.

    The loss counts tiles: mean cross-entropies, weighted by kind, times the tiles of the batch.
    """

    trainee: Trainee
    stream: SceneStream
    samples: int

    def batch(self, step: int, rank: int, world: int) -> tuple[Tensor, PatchLabels]:
        numbers = range(step * self.samples + rank, (step + 1) * self.samples, world)
        found = [pictures(self.stream, number, self.trainee.tiler)[0] for number in numbers]
        tiles = torch.cat([tiled.tiles for shown in found for tiled in shown.tiled()])
        labels = PatchLabels.join([shown.labels(patch=self.trainee.patch, all_scales=True) for shown in found])
        keep = telling(labels, seed=numbers.start)
        return tiles[keep], labels.where(keep)

    def loss(self, batch: tuple[Tensor, PatchLabels]) -> tuple[Tensor, int, dict[str, float]]:
        tiles, labels = batch
        scores = self.trainee.patches(self.trainee.model.vision(tiles))
        losses = patch_losses(scores, labels)
        count = len(tiles)
        extra = {
            "read": accuracy(scores["characters"], labels.characters) * count,
            "seen": accuracy(scores["objects"], labels.objects) * count,
        }
        total = torch.stack([WEIGHTS[name] * loss for name, loss in losses.items()]).sum()
        return total * count, count, extra


def telling(labels: PatchLabels, *, seed: int) -> Tensor:
    """Which tiles to learn from: all with four labels or more, fewer of the emptier ones, never none.

    Shape: bool ``[n]``; the same for the same seed.
    """
    said = (labels.cover > 0).sum(1) + (labels.objects > 0).sum(1) + (labels.characters > 0).sum((1, 2))
    drawn = torch.randint(0, 4, said.shape, generator=torch.Generator().manual_seed(seed))
    keep = said > drawn
    keep[said.argmax()] = True
    return keep
