"""How well a checkpoint answers: exact match on questions with one right answer.

Questions are asked through the public door (``NVILA.generate``), greedily, those of one kind together. Where they come
from is another matter; ``nvila-train eval`` draws them (``nano.held_out``).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby, islice

from nvila_model import NVILA, Image, Sampling, Video

BATCH = 25
"""Questions that are answered at once."""
LONGEST = 24
"""Tokens of an answer at most; the longest true one of drawn scenes has 12."""


@dataclass(frozen=True, kw_only=True)
class ExamQuestion:
    """One question and what is right.

    Attributes:
        kind: what results are counted by.
        seed: tells questions of a kind apart.
        media: what is asked about.
        expected: the right answer, to the letter.
    """

    kind: str
    seed: int
    media: Image | Video
    question: str
    expected: str


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
    model: NVILA, questions: Iterable[ExamQuestion], *, report: Callable[[list[Result]], None] | None = None
) -> list[Result]:
    """Ask questions, which stand by kind.

    Args:
        report: called with the results of each batch.
    """
    results: list[Result] = []
    for _, kind in groupby(questions, key=lambda question: question.kind):
        while batch := list(islice(kind, BATCH)):
            found = answers(model, batch)
            results += found
            if report:
                report(found)
    return results


def answers(model: NVILA, questions: Sequence[ExamQuestion]) -> list[Result]:
    """Ask some questions at once."""
    messages = [[{"role": "user", "content": [question.media, question.question]}] for question in questions]
    given = model.generate(messages, Sampling(max_new_tokens=LONGEST))
    return [
        Result(
            kind=question.kind, seed=question.seed, question=question.question, expected=question.expected,
            answer=answer.text,
        )
        for question, answer in zip(questions, given, strict=True)
    ]  # fmt: skip


def accuracy(results: Iterable[Result]) -> dict[str, float]:
    """Share of exact matches by kind, in the order of the results."""
    right: dict[str, list[bool]] = {}
    for result in results:
        right.setdefault(result.kind, []).append(result.right)
    return {kind: round(sum(found) / len(found), 4) for kind, found in right.items()}
