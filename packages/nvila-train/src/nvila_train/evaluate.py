"""How well a checkpoint answers: exact match on fresh scenes with fonts that were never trained on.

Nothing is shared with training but the drawing: pictures go in as PNG files and clips as encoded video files, through
the public door (``NVILA.generate``), greedily. Each scene asks one of its questions, picked by the seed.
"""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from nvila_model.generation.sampling import Sampling
from nvila_model.inputs.media import Image, Video
from nvila_model.nvila import NVILA

from nvila_train.nano.drawing import KINDS, Scene, draw

BATCH = 25
"""Questions that are answered at once."""
LONGEST = 24
"""Tokens of an answer at most; the longest true one has 12."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """One question with its true and its given answer."""

    kind: str
    seed: int
    question: str
    expected: str
    answer: str

    @property
    def right(self) -> bool:
        return self.answer.strip() == self.expected


def evaluate(
    model: NVILA, *, seed: int, count: int, report: Callable[[list[Result]], None] | None = None
) -> list[Result]:
    """Ask ``count`` questions of every kind.

    Args:
        seed: of the scenes; another seed gives other scenes.
        report: called with the results of each batch.

    Raises: ValueError if ``count`` is below 1.
    """
    if count < 1:
        raise ValueError(f"count {count} asks nothing: use at least 1")
    results: list[Result] = []
    for kind in KINDS:
        for start in range(0, count, BATCH):
            found = list(_ask(model, kind, range(start, min(start + BATCH, count)), seed))
            results += found
            if report:
                report(found)
    return results


def _ask(model: NVILA, kind: str, numbers: range, seed: int) -> Iterator[Result]:
    scenes = [draw(kind, seed=seed * 1_000_003 + number, split="test") for number in numbers]
    asked = [
        Random(f"{seed}/{kind}/{number}").choice(scene.questions) for number, scene in zip(numbers, scenes, strict=True)
    ]
    messages = [
        [{"role": "user", "content": [file_of(scene), question.question]}]
        for scene, question in zip(scenes, asked, strict=True)
    ]
    answers = model.generate(messages, Sampling(max_new_tokens=LONGEST))
    for number, question, answer in zip(numbers, asked, answers, strict=True):
        yield Result(
            kind=kind, seed=seed * 1_000_003 + number, question=question.question, expected=question.answer,
            answer=answer.text,
        )  # fmt: skip


def file_of(scene: Scene) -> Image | Video:
    """The scene as the file that a user would have: an MP4 clip or a PNG picture."""
    if scene.clip is not None:
        return Video(scene.clip.encode())
    assert scene.image is not None
    buffer = io.BytesIO()
    scene.image.save(buffer, format="PNG", compress_level=1)
    return Image(buffer.getvalue())


def accuracy(results: list[Result]) -> dict[str, float]:
    """Share of exact matches by kind."""
    shares: dict[str, float] = {}
    for kind in KINDS:
        right = [result.right for result in results if result.kind == kind]
        if right:
            shares[kind] = round(sum(right) / len(right), 4)
    return shares
