"""Questions from templates, and which of them a scene keeps."""

from collections.abc import Sequence
from random import Random

from nvila_train.nano.drawing.scene import Question


def ask(rng: Random, answer: str | int, *templates: str, **words: str | int) -> Question:
    """One of the paraphrases filled with ``words``, and its answer."""
    return Question(question=rng.choice(templates).format(**words), answer=str(answer))


def keep(rng: Random, questions: Sequence[Question], most: int = 5) -> tuple[Question, ...]:
    """At most ``most`` of the questions, no wording twice, in random order."""
    different = {question.question: question for question in questions}
    kept = list(different.values())
    rng.shuffle(kept)
    return tuple(kept[:most])
