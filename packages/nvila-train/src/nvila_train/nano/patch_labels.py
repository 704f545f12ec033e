"""What a patch shows, finer than one class: which character in which half, which object's centre, how large.

The playground's ``patch_targets`` says what covers a patch. To answer from it, a language model must also know
the order of two narrow letters that share a patch, and where an object ends. So each patch has further labels:

- ``characters``: for its left and right half, the character whose centre falls there;
- ``objects``: the object whose centre falls there, with its width, its height and the place of the centre.

The vision tower is pretrained to say all of them, and the language model to answer from them, so that the
two meet in the middle.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from nvila_tiling import TilePlan
from torch import Tensor

from nvila_train.nano.drawing import DENSE_CLASSES, IGNORE, Scene, patch_targets

HALVES: Final = 2
"""Places for a character in a patch, side by side."""
LENGTHS: Final = 17
"""Classes of an object's width and height: quarters of a patch, the last one for all that is longer."""
PLACES: Final = 16
"""Classes of where in the patch an object's centre lies: 4 x 4."""
LEGIBLE: Final = 0.5
"""Smallest height of a character that can be read, in patches."""

_CLASS: Final = {name: index for index, name in enumerate(DENSE_CLASSES)}


@dataclass(frozen=True, kw_only=True)
class PatchLabels:
    """The labels of patches, int64; ``IGNORE`` where nothing can be said.

    Attributes:
        cover: ``[n, p]`` the class that covers most of the patch.
        characters: ``[n, p, HALVES]`` the class of the character centred in each half, 0 for none.
        objects: ``[n, p]`` the class of the object centred there, 0 for none.
        sizes: ``[n, p, 3]`` its width, height and place; ``IGNORE`` without an object.
    """

    cover: Tensor
    characters: Tensor
    objects: Tensor
    sizes: Tensor

    def last(self, tiles: int) -> "PatchLabels":
        """The labels of the last ``tiles`` tiles."""
        return PatchLabels(
            cover=self.cover[-tiles:],
            characters=self.characters[-tiles:],
            objects=self.objects[-tiles:],
            sizes=self.sizes[-tiles:],
        )

    @staticmethod
    def join(parts: "list[PatchLabels]") -> "PatchLabels":
        """The labels of several pictures, one after the other."""
        names = ("cover", "characters", "objects", "sizes")
        return PatchLabels(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})

    def where(self, keep: Tensor) -> "PatchLabels":
        """The labels of some of the tiles; ``keep`` is bool ``[n]``."""
        return PatchLabels(
            cover=self.cover[keep], characters=self.characters[keep], objects=self.objects[keep], sizes=self.sizes[keep]
        )


def patch_labels(scene: Scene, plan: TilePlan, *, patch: int) -> PatchLabels:
    """All labels of a tiled picture.

    Shapes: ``n`` = ``plan.tiles``, ``p`` = ``(plan.tile / patch)^2``; tiles and patches row by row.
    Raises: ValueError if the tile is no multiple of the patch.
    """
    cover = patch_targets(scene, plan, patch)
    side = plan.tile // patch
    glyphs = _boxes([(_CLASS.get(glyph.char, IGNORE), *glyph.box) for glyph in scene.glyphs])
    things = _boxes([(_CLASS.get(f"{item.colour} {item.name}", IGNORE), *item.box) for item in scene.objects])
    characters: list[np.ndarray] = []
    objects: list[np.ndarray] = []
    for grid in plan.levels:
        rows, cols = grid.rows * side, grid.cols * side
        scale = np.array([1.0, *[cols / plan.size[0], rows / plan.size[1]] * 2])
        characters.append(_tiled(_characters(glyphs * scale, rows, cols), side))
        objects.append(_tiled(_objects(things * scale, rows, cols), side))
    placed = torch.from_numpy(np.concatenate(objects))
    return PatchLabels(
        cover=cover,
        characters=torch.from_numpy(np.concatenate(characters)),
        objects=placed[..., 0],
        sizes=placed[..., 1:],
    )


def _boxes(rows: list[tuple[float, ...]]) -> np.ndarray:
    return np.array(rows, dtype=np.float64).reshape(-1, 5)


def _tiled(labels: np.ndarray, side: int) -> np.ndarray:
    """``[rows * side, cols * side, k] -> [rows * cols, side * side, k]``."""
    rows, cols = labels.shape[0] // side, labels.shape[1] // side
    tiles = labels.reshape(rows, side, cols, side, -1).transpose(0, 2, 1, 3, 4)
    return tiles.reshape(rows * cols, side * side, -1)


def _characters(glyphs: np.ndarray, rows: int, cols: int) -> np.ndarray:
    """Labels ``[rows, cols, HALVES]`` from ``[n, 5]`` classes and boxes measured in patches."""
    labels = np.zeros((rows, cols * HALVES), dtype=np.int64)
    across = ((glyphs[:, 1] + glyphs[:, 3]) / 2 * HALVES).astype(np.int64).clip(0, cols * HALVES - 1)
    down = ((glyphs[:, 2] + glyphs[:, 4]) / 2).astype(np.int64).clip(0, rows - 1)
    small = glyphs[:, 4] - glyphs[:, 2] < LEGIBLE
    labels[down, across] = np.where(small, IGNORE, glyphs[:, 0])
    places, count = np.unique(down * cols * HALVES + across, return_counts=True)
    labels.reshape(-1)[places[count > 1]] = IGNORE  # two in one place: neither is right
    return labels.reshape(rows, cols, HALVES)


def _objects(things: np.ndarray, rows: int, cols: int) -> np.ndarray:
    """Labels ``[rows, cols, 4]``: class, width, height, place."""
    labels = np.full((rows, cols, 4), IGNORE, dtype=np.int64)
    labels[..., 0] = 0
    centre_x, centre_y = (things[:, 1] + things[:, 3]) / 2, (things[:, 2] + things[:, 4]) / 2
    across, down = centre_x.astype(np.int64).clip(0, cols - 1), centre_y.astype(np.int64).clip(0, rows - 1)
    wide, high = things[:, 3] - things[:, 1], things[:, 4] - things[:, 2]
    fine_x, fine_y = (((c - c.astype(np.int64)) * 4).astype(np.int64).clip(0, 3) for c in (centre_x, centre_y))
    labels[down, across, 0] = things[:, 0]
    labels[down, across, 1] = (wide * 4).astype(np.int64).clip(0, LENGTHS - 1)
    labels[down, across, 2] = (high * 4).astype(np.int64).clip(0, LENGTHS - 1)
    labels[down, across, 3] = fine_y * 4 + fine_x
    return labels
