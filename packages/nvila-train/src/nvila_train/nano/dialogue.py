"""Scenes become conversations: the picture, then some of its questions and answers in any order."""

from collections.abc import Sequence
from random import Random
from typing import Any, Final

from nvila_model import Image, Video

from nvila_train.nano.drawing import Scene
from nvila_train.nano.drawing.clips import Story

CAPTION_REQUESTS: Final = ("Describe the picture.", "What do you see?", "Write down what is there.")
"""Questions whose answer is the scene written out."""


def turns(scene: Scene | Story, rng: Random, *, most: int, captions: float) -> list[tuple[str, str]]:
    """Pairs of question and answer.

    Args:
        most: questions about details, at most; as many as the scene has otherwise.
        captions: how often the last turn asks for the whole scene.
    """
    questions = rng.sample(scene.questions, min(most, len(scene.questions)))
    pairs = [(question.question, question.answer) for question in questions]
    if rng.random() < captions:
        pairs.append((rng.choice(CAPTION_REQUESTS), scene.text))
    return pairs


def conversation(media: str | Image | Video, pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    """Messages with ``media`` in front of the first question.

    Args:
        media: a picture, or the media token that stands for it; with a token all contents are plain text.
    """
    messages: list[dict[str, Any]] = []
    for index, (question, answer) in enumerate(pairs):
        content: Any = question
        if index == 0:
            content = f"{media}{question}" if isinstance(media, str) else [media, question]
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]
    return messages
