"""The pool of samples that ``delta_loss_table.py`` prunes, as LLaVA records beside their pictures and clips.

Each drawn scene gives up to three records, one a question. A pool with faults holds, in every source:

    sound   the question and its answer                                                          60 %
    told    the answer stands behind the question, so that nobody need look: it teaches nothing  20 %
    wrong   the answer to another question of the source that begins with the same two words     20 %

The field ``quality`` of a record says which it is. Neither scoring nor pruning reads it; it is there to be counted in
what they keep.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from nvila_train.nano.drawing import KINDS, Split, draw
from nvila_train.nano.held_out import file_of

QUESTIONS = 3
"""Records about one scene, at most."""
QUALITIES = ("sound", "told", "wrong")
FAULTY = (0.6, 0.2, 0.2)
SOUND = (1.0, 0.0, 0.0)


def write_pool(
    path: Path, samples: int, *, first: int, shares: tuple[float, float, float], split: Split = "train", questions: int
) -> None:
    """Write ``samples`` records, of every source as many, and their media beside them; done once, if at all.

    Args:
        first: number of the first scene of each source; pools that share no scene share no number.
        shares: of sound, told and wrong records.
        questions: records about one scene, at most.
    """
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = Random(f"{first}/{split}/{shares}")
    records = [record for kind in KINDS for record in asked(path, kind, samples // len(KINDS), first, split, questions)]
    spoil(records, rng, shares)
    rng.shuffle(records)
    unfinished = path.with_suffix(".new")
    unfinished.write_text("".join(json.dumps(record) + "\n" for record in records))
    unfinished.replace(path)


def asked(path: Path, kind: str, count: int, first: int, split: Split, questions: int) -> Iterator[dict[str, Any]]:
    """Sound records about the scenes of one source, whose media are written as they come."""
    number = 0
    while number < count:
        scene = draw(kind, seed=first, split=split)
        medium = "image" if scene.clip is None else "video"
        name = f"{path.stem}-{kind}-{first}.{'png' if medium == 'image' else 'mp4'}"
        path.with_name(name).write_bytes(file_of(scene).source)
        # A scene keeps its questions in random order, so the first are any.
        for question in scene.questions[: min(questions, count - number)]:
            turns = [{"from": "human", "value": question.question}, {"from": "gpt", "value": question.answer}]
            yield {"id": number, medium: name, "conversations": turns, "source": kind, "quality": "sound"}
            number += 1
        first += 1


def spoil(records: list[dict[str, Any]], rng: Random, shares: tuple[float, float, float]) -> None:
    """Give records away or false, by their shares; a question that has one answer alone cannot be made false."""
    answers: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for record in records:
        answers[sort(record)].add(record["conversations"][1]["value"])
    for record in records:
        question, answer = record["conversations"]
        quality = rng.choices(QUALITIES, shares)[0]
        others = sorted(answers[sort(record)] - {answer["value"]})
        if quality == "told":
            question["value"] = f"{question['value']} {answer['value']}"
        elif quality == "wrong" and others:
            answer["value"] = rng.choice(others)
        else:
            quality = "sound"
        record["quality"] = quality


def sort(record: dict[str, Any]) -> tuple[str, ...]:
    """What two questions share that might have each other's answers: their source and their first two words."""
    return record["source"], *record["conversations"][0]["value"].split()[:2]
