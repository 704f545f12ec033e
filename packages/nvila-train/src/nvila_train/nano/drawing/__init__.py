"""What we draw: documents, charts, shapes and clips, with questions and exact answers.

``draw(kind, seed=..., split=...)`` makes one scene, the same in every process. The test split draws with font families
and a stream of random numbers that training never sees.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from random import Random
from typing import Final

from nvila_train.nano.drawing.charts.draw_chart import draw_chart
from nvila_train.nano.drawing.clips import draw_clip
from nvila_train.nano.drawing.documents.draw_document import draw_document
from nvila_train.nano.drawing.fonts import Split
from nvila_train.nano.drawing.patch_targets import DENSE_CLASSES, IGNORE, patch_targets
from nvila_train.nano.drawing.scene import Clip, Glyph, Object, Question, Scene
from nvila_train.nano.drawing.shapes import draw_shapes

__all__ = [
    "DENSE_CLASSES",
    "IGNORE",
    "KINDS",
    "Clip",
    "Glyph",
    "Object",
    "Question",
    "Scene",
    "Split",
    "draw",
    "patch_targets",
    "samples",
]

_DRAW: Final[dict[str, Callable[[Random, Split], Scene]]] = {
    "shapes": draw_shapes,
    "documents": draw_document,
    "charts": draw_chart,
    "clips": draw_clip,
}

KINDS: Final = tuple(_DRAW)
"""Every kind of drawing."""


def draw(kind: str, *, seed: int, split: Split = "train") -> Scene:
    """Draw one scene; the same kind, seed and split give the same scene in every process.

    Raises: ValueError for an unknown kind or split.
    """
    if kind not in _DRAW:
        raise ValueError(f"unknown kind {kind!r}: choose one of {', '.join(KINDS)}")
    if split not in ("train", "test"):
        raise ValueError(f"unknown split {split!r}: choose train or test")
    return _DRAW[kind](Random(f"{split}/{kind}/{seed}"), split)


def samples(kinds: Sequence[str] = KINDS, *, seed: int = 0, split: Split = "train", start: int = 0) -> Iterator[Scene]:
    """Scenes without end, the kinds in turn; scene ``i`` depends on ``seed`` and ``i`` alone, so ``start`` resumes."""
    for index in count(start):
        yield draw(kinds[index % len(kinds)], seed=seed * 1_000_000_007 + index // len(kinds), split=split)
