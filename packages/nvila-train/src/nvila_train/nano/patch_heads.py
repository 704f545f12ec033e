"""Linear heads that say of every patch what it shows; see ``targets`` for what there is to say."""

from collections.abc import Mapping
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvila_train.nano.drawing import DENSE_CLASSES, IGNORE
from nvila_train.nano.patch_labels import HALVES, LENGTHS, PLACES, PatchLabels

SHAPES: Final[dict[str, tuple[int, ...]]] = {
    "cover": (len(DENSE_CLASSES),),
    "characters": (HALVES, len(DENSE_CLASSES)),
    "objects": (len(DENSE_CLASSES),),
    "width": (LENGTHS,),
    "height": (LENGTHS,),
    "place": (PLACES,),
}
"""Scores of each kind of label for one patch."""

WEIGHTS: Final = {"cover": 1.0, "characters": 1.0, "objects": 0.5, "width": 0.15, "height": 0.15, "place": 0.15}
"""How much each kind counts in the loss."""

WITH_BACKGROUND: Final = ("cover", "characters", "objects")
"""Kinds whose class 0 is background."""

BACKGROUND: Final = 0.1
"""How much a patch that shows nothing counts."""


class PatchHeads(nn.Module):
    """Scores of every kind of label from the vision tower's features.

    Shapes: features ``[n, p, width]`` -> by kind ``[n, p, *SHAPES[kind]]``.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, sum(_sizes()))

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        parts = self.head(self.norm(features)).split(_sizes(), dim=-1)
        return {name: part.unflatten(-1, shape) for (name, shape), part in zip(SHAPES.items(), parts, strict=True)}


def _sizes() -> list[int]:
    return [torch.Size(shape).numel() for shape in SHAPES.values()]


def targets_of(labels: PatchLabels) -> dict[str, Tensor]:
    """The labels by kind, int64 ``[labels]``."""
    width, height, place = labels.sizes.unbind(-1)
    found = {
        "cover": labels.cover,
        "characters": labels.characters,
        "objects": labels.objects,
        "width": width,
        "height": height,
        "place": place,
    }
    return {name: target.flatten() for name, target in found.items()}


def label_weights(labels: PatchLabels) -> dict[str, Tensor]:
    """How much each label counts among its kind: float32 ``[labels]``, 0 where nothing can be said.

    Most patches show nothing, so background counts ``BACKGROUND`` times as much as anything else; counted alike, it is
    nearly all of the gradient and a small tower learns nothing but where things are.
    """
    found: dict[str, Tensor] = {}
    for name, target in targets_of(labels).items():
        weights = (target != IGNORE).float()
        found[name] = weights.masked_fill(target == 0, BACKGROUND) if name in WITH_BACKGROUND else weights
    return found


def patch_losses(scores: Mapping[str, Tensor], labels: PatchLabels) -> dict[str, Tensor]:
    """Cross-entropy by kind of label, summed with the labels' weights; over their sum it is the mean."""
    weights = label_weights(labels)
    return {
        name: (cross_entropy(scores[name], target) * weights[name]).sum() for name, target in targets_of(labels).items()
    }


def cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    """Of every label, 0 where there is none. Shapes: ``[..., classes]``, int64 ``[labels]`` -> float32 ``[labels]``."""
    return F.cross_entropy(scores.flatten(0, -2).float(), targets, ignore_index=IGNORE, reduction="none")


def asked(labels: Tensor) -> Tensor:
    """Labels other than background and ``IGNORE``: bool of the same shape."""
    return labels > 0


def right(scores: Tensor, labels: Tensor) -> int:
    """How many of those are said right."""
    return int((scores.argmax(-1) == labels)[asked(labels)].sum())
