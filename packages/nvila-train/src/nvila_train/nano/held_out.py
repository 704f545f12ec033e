"""Questions that nano never trained on: fresh scenes, in typefaces that training does not use.

Nothing is shared with training but the drawing: pictures go in as PNG files and clips as encoded video files. Each
scene asks one of its questions, picked by the seed.
"""

import io
from collections.abc import Iterator, Sequence
from random import Random

import PIL.Image
from nvila_model import Image, Video

from nvila_train.evaluate import ExamQuestion, Result
from nvila_train.nano.drawing import KINDS, Scene, draw
from nvila_train.report import Shown


def held_out(*, seed: int, count: int) -> Iterator[ExamQuestion]:
    """``count`` questions of every kind, drawn as they are taken.

    Args:
        seed: of the scenes; another seed gives other scenes.

    Raises: ValueError if ``count`` is below 1.
    """
    if count < 1:
        raise ValueError(f"count {count} asks nothing: use at least 1")
    for kind in KINDS:
        for number in range(count):
            scene_seed = seed * 1_000_003 + number
            scene = draw(kind, seed=scene_seed, split="test")
            question = Random(f"{seed}/{kind}/{number}").choice(scene.questions)
            yield ExamQuestion(
                kind=kind, seed=scene_seed, media=file_of(scene), question=question.question, expected=question.answer
            )


def file_of(scene: Scene) -> Image | Video:
    """The scene as the file that a user would have: an MP4 clip or a PNG picture."""
    if scene.clip is not None:
        return Video(scene.clip.encode())
    assert scene.image is not None
    buffer = io.BytesIO()
    scene.image.save(buffer, format="PNG", compress_level=1)
    return Image(buffer.getvalue())


def shown(results: Sequence[Result]) -> list[Shown]:
    """Answers with their pictures, for a report."""
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
