"""Answers to show: a model is asked about held-out drawings, and the pictures are kept with what it said."""

import io

import PIL.Image
from nvila_model.nvila import NVILA

from nvila_train.evaluate import evaluate
from nvila_train.nano.drawing import Scene, draw
from nvila_train.report import Shown


def asked(model: str, *, count: int, seed: int) -> list[Shown]:
    """Ask ``count`` questions of every kind, as ``nvila-train eval`` does."""
    results = evaluate(NVILA.from_pretrained(model), seed=seed, count=count)
    return [
        Shown(
            kind=result.kind,
            question=result.question,
            expected=result.expected,
            answer=result.answer,
            png=png(draw(result.kind, seed=result.seed, split="test")),
        )
        for result in results
    ]


def png(scene: Scene) -> bytes:
    """The picture of a scene, or the first frame of its clip, as a file."""
    picture = scene.image
    if picture is None:
        assert scene.clip is not None
        picture = PIL.Image.fromarray(scene.clip.frames[0])
    file = io.BytesIO()
    picture.save(file, format="PNG", optimize=True)
    return file.getvalue()
