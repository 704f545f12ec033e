"""What each patch of each tile shows: the classes that a vision encoder is pretrained on.

Reading cannot be learned through the answers alone at this size; a label on every patch gives the encoder hundreds of
targets a picture. A patch takes the class of the character or shape that covers most of its centre. A patch that text
only grazes, or whose text is too small to read at that scale, has no label.
"""

import string
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor

from nvila_train.nano.drawing.scene import Scene
from nvila_train.nano.drawing.words import COLOURS, SHAPES

if TYPE_CHECKING:
    from nvila_tiling import TilePlan

CHARACTERS: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase + ".,:-/%&'"
MARKS: Final = (*SHAPES, "bar", "slice", "point")
DENSE_CLASSES: Final = (
    "background",
    *CHARACTERS,
    *(f"{colour} {mark}" for mark in MARKS for colour in COLOURS),
)
"""Background, characters, and every colour of every shape."""

IGNORE: Final = -100
"""The label of a patch that no class describes; the index that torch's cross entropy leaves out."""

_CLASS: Final = {name: index for index, name in enumerate(DENSE_CLASSES)}
LEGIBLE: Final = 0.72
"""Smallest height of a character's box that can be read, in patches."""
COVERED: Final = 0.3
GRAZED: Final = 0.08


def patch_targets(scene: Scene, plan: "TilePlan", patch: int) -> Tensor:
    """Classes of all patches of a tiled picture.

    Args:
        scene: a drawing with an image.
        plan: how the image was cut; scales smallest first.
        patch: side of a patch in pixels; divides ``plan.tile``.

    Shapes: int64 ``[plan.tiles, (plan.tile / patch) ** 2]``, tiles and patches row by row.
    Raises: ValueError if the tile is no multiple of the patch.
    """
    if plan.tile % patch:
        raise ValueError(f"tile {plan.tile} is no multiple of patch {patch}: choose a divisor")
    side = plan.tile // patch
    grids = [(grid.rows, grid.cols) for grid in plan.grids] + [(1, 1)] * plan.thumbnail
    labelled = [(_CLASS.get(glyph.char, IGNORE), glyph.box, True) for glyph in scene.glyphs]
    labelled += [(_CLASS.get(f"{thing.colour} {thing.name}", IGNORE), thing.box, False) for thing in scene.objects]
    classes = np.array([item[0] for item in labelled], dtype=np.int64)
    boxes = np.array([item[1] for item in labelled], dtype=np.float64).reshape(-1, 4)
    is_glyph = np.array([item[2] for item in labelled], dtype=bool)
    maps: list[np.ndarray] = []
    for rows, cols in grids:
        scale = np.array([cols * side / plan.size[0], rows * side / plan.size[1]] * 2)
        labels = _label_map(classes, boxes * scale, is_glyph, rows * side, cols * side)
        tiled = labels.reshape(rows, side, cols, side).transpose(0, 2, 1, 3)
        maps.append(tiled.reshape(rows * cols, side * side))
    return torch.from_numpy(np.concatenate(maps))


def _label_map(classes: np.ndarray, boxes: np.ndarray, is_glyph: np.ndarray, rows: int, cols: int) -> np.ndarray:
    """Labels ``[rows, cols]`` for boxes measured in patches."""
    labels = np.zeros((rows, cols), dtype=np.int64)
    if not len(classes):
        return labels
    across = _share(boxes[:, 0], boxes[:, 2], cols)
    down = _share(boxes[:, 1], boxes[:, 3], rows)
    cover = np.einsum("nr,nc->nrc", down, across)
    small = boxes[:, 3] - boxes[:, 1] < np.where(is_glyph, LEGIBLE, 0.5)
    classes = np.where(small, IGNORE, classes)
    for chosen in (~is_glyph, is_glyph):  # characters stand on top of what they are printed on
        if chosen.any():
            named = 1e-6 * (classes[chosen] != IGNORE)  # a slice wins over the pie that holds it
            most = (cover[chosen] + named[:, None, None]).argmax(0)
            share = np.take_along_axis(cover[chosen], most[None], 0)[0]
            found = np.where(share >= COVERED, classes[chosen][most], IGNORE)
            labels = np.where(share >= GRAZED, found, labels)
    return labels


def _share(start: np.ndarray, end: np.ndarray, count: int) -> np.ndarray:
    """How much of the middle half of each of ``count`` unit intervals lies between start and end: ``[n, count]``."""
    middle = np.arange(count)
    overlap = np.minimum(end[:, None], middle + 0.75) - np.maximum(start[:, None], middle + 0.25)
    return np.clip(overlap, 0, None) / 0.5
