"""Pretraining of the vision tower: say of every patch what it shows.

A published NVILA starts from SigLIP, which has seen billions of pictures. Ours starts from nothing, and learning to
read through the answers alone stalls: one answer is a few labels for a picture of 272 patches. Labels on every patch
are hundreds a picture, and after minutes the tower reads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from nvila_model.vision import VisionTower
from nvila_tiling import DynamicS2
from torch import Tensor, nn

from nvila_train.acting import act
from nvila_train.playground import DENSE_CLASSES, IGNORE
from nvila_train.stream import SceneStream, labelled
from nvila_train.targets import HALVES, LENGTHS, PLACES, PatchLabels


class DensePretraining(nn.Module):
    """A vision tower with a linear head for each kind of patch label; the heads are thrown away afterwards.

    Shapes: tiles ``[n, 3, s, s]`` -> scores ``[n, p, classes]`` by kind of label.
    """

    def __init__(self, vision: VisionTower) -> None:
        super().__init__()
        self.vision = vision
        self.norm = nn.LayerNorm(vision.width)
        self.sizes = {
            "cover": (len(DENSE_CLASSES),),
            "characters": (HALVES, len(DENSE_CLASSES)),
            "objects": (len(DENSE_CLASSES),),
            "width": (LENGTHS,),
            "height": (LENGTHS,),
            "place": (PLACES,),
        }
        width = sum(torch.Size(size).numel() for size in self.sizes.values())
        self.head = nn.Linear(vision.width, width)

    def forward(self, tiles: Tensor) -> dict[str, Tensor]:
        scores = self.head(self.norm(self.vision(tiles)))
        parts = scores.split([torch.Size(size).numel() for size in self.sizes.values()], dim=-1)
        return {name: part.unflatten(-1, size) for (name, size), part in zip(self.sizes.items(), parts, strict=True)}


WEIGHTS = {"cover": 1.0, "characters": 1.0, "objects": 0.5, "width": 0.15, "height": 0.15, "place": 0.15}


def dense_loss(scores: Mapping[str, Tensor], labels: PatchLabels) -> dict[str, Tensor]:
    """Mean cross-entropy by kind of label."""
    width, height, place = labels.sizes.unbind(-1)
    targets = {
        "cover": labels.cover,
        "characters": labels.characters,
        "objects": labels.objects,
        "width": width,
        "height": height,
        "place": place,
    }
    return {name: balanced(scores[name].flatten(0, -2), target.flatten(), name) for name, target in targets.items()}


def balanced(scores, target, name):
    losses = F.cross_entropy(scores, target, ignore_index=IGNORE, reduction="none")
    if name in ("width", "height", "place"):
        return losses.sum() / (target != IGNORE).sum().clamp(min=1)
    weights = torch.where(target > 0, 1.0, 0.1) * (target != IGNORE)
    return (losses * weights).sum() / weights.sum().clamp(min=1)


@dataclass(frozen=True, kw_only=True)
class DenseTask:
    """Batches of tiled scenes with their patch labels."""

    model: DensePretraining
    stream: SceneStream
    tiler: DynamicS2
    samples: int

    def batch(self, step: int, rank: int, world: int) -> tuple[Tensor, PatchLabels]:
        numbers = range(step * self.samples + rank, (step + 1) * self.samples, world)
        patch = self.model.vision.patch_size
        pairs = [pair for number in numbers for pair in self.tiled(number, patch)]
        tiles, labels = torch.cat([tiles for tiles, _ in pairs]), PatchLabels.join([labels for _, labels in pairs])
        said = (labels.cover > 0).sum(1) + (labels.objects > 0).sum(1) + (labels.characters > 0).sum((1, 2))
        keep = said > torch.randint(0, 4, said.shape)
        keep[0] = True
        return tiles[keep], PatchLabels(
            cover=labels.cover[keep],
            characters=labels.characters[keep],
            objects=labels.objects[keep],
            sizes=labels.sizes[keep],
        )

    def tiled(self, number: int, patch: int) -> list[tuple[Tensor, PatchLabels]]:
        """The tiles and labels of one scene; a clip gives all its frames, one tile each."""
        if self.stream.kind(number) == "clips":
            single = self.tiler.single()
            return [labelled(frame, single, patch=patch) for frame in act(self.stream.random(number)).frames]
        return [labelled(self.stream.scene(number), self.tiler, patch=patch)]

    def loss(self, batch: tuple[Tensor, PatchLabels]) -> tuple[Tensor, int, dict[str, float]]:
        tiles, labels = batch
        scores = self.model(tiles)
        losses = dense_loss(scores, labels)
        count = len(tiles)
        extra = {name: float(loss.detach()) * count for name, loss in losses.items()}
        extra["read"] = accuracy(scores["characters"], labels.characters) * count
        extra["seen"] = accuracy(scores["objects"], labels.objects) * count
        total = torch.stack([WEIGHTS[name] * loss for name, loss in losses.items()]).sum()
        return total * count, count, extra


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """The share of labels other than background and ``IGNORE`` that are said right; 1 if there is none."""
    asked = labels > 0
    right = scores.argmax(-1)[asked] == labels[asked]
    return float(right.float().mean()) if len(right) else 1.0


def dense_groups(model: DensePretraining, rate: float) -> Sequence[Mapping[str, object]]:
    """One parameter group with everything."""
    return [{"params": list(model.parameters()), "lr": rate}]
