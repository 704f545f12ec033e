"""Linear heads that say of every patch what it shows; see ``targets`` for what there is to say."""

from collections.abc import Mapping
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nvila_train.playground import DENSE_CLASSES, IGNORE
from nvila_train.targets import HALVES, LENGTHS, PLACES, PatchLabels

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


def patch_losses(scores: Mapping[str, Tensor], labels: PatchLabels) -> dict[str, Tensor]:
    """Mean cross-entropy by kind of label; 0 for a kind that has none.

    Most patches show nothing, so background counts ``BACKGROUND`` times as much as anything else; counted alike, it is
    nearly all of the gradient and a small tower learns nothing but where things are.
    """
    width, height, place = labels.sizes.unbind(-1)
    targets = {
        "cover": labels.cover,
        "characters": labels.characters,
        "objects": labels.objects,
        "width": width,
        "height": height,
        "place": place,
    }
    return {name: _balanced(scores[name].flatten(0, -2), target.flatten(), name) for name, target in targets.items()}


def _balanced(scores: Tensor, targets: Tensor, kind: str) -> Tensor:
    losses = F.cross_entropy(scores.float(), targets, ignore_index=IGNORE, reduction="none")
    weights = (targets != IGNORE).float()
    if kind in WITH_BACKGROUND:
        weights = weights.masked_fill(targets == 0, BACKGROUND)
    return (losses * weights).sum() / weights.sum().clamp(min=1)


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """The share of labels other than background and ``IGNORE`` that are said right; 1 if there is none."""
    asked = labels > 0
    right = scores.argmax(-1)[asked] == labels[asked]
    return float(right.float().mean()) if len(right) else 1.0
