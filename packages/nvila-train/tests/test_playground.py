"""The drawings: the same everywhere, true to their answers, legible, and not to be guessed."""

import hashlib
import os
import subprocess
import sys
from collections import Counter, defaultdict
from random import Random

import numpy as np
import pytest
from nvila_train.nano.drawing import KINDS, Scene, draw, samples
from nvila_train.nano.drawing.canvas import seen_size
from nvila_train.nano.drawing.documents.draw_document import MAKERS, draw_document
from nvila_train.nano.drawing.fonts import FACES, letter
from nvila_train.nano.drawing.patch_targets import CHARACTERS

SPLITS = ("train", "test")


def digest(scene: Scene) -> str:
    pixels = np.asarray(scene.image) if scene.image is not None else scene.clip.frames
    parts = (pixels.tobytes(), repr(scene.questions), scene.text, repr(scene.glyphs), repr(scene.objects))
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()


def digests() -> list[str]:
    return [digest(draw(kind, seed=seed, split=split)) for kind in KINDS for split in SPLITS for seed in range(4)]


def test_the_same_in_another_process() -> None:
    """Neither the process, its hash seed nor what was drawn before moves a pixel."""
    script = f"import runpy; print(*runpy.run_path({__file__!r})['digests']()[::-1])"
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    printed = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    assert printed.stdout.split()[::-1] == digests()


def test_seeds_and_splits_differ() -> None:
    found = digests()
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("kind", KINDS)
def test_every_scene_is_whole(kind: str) -> None:
    for seed in range(60):
        scene = draw(kind, seed=seed)
        assert scene.kind == kind
        assert (scene.image is None) == (kind == "clips") == (scene.clip is not None)
        assert 2 <= len(scene.questions) <= 6
        assert len({question.question for question in scene.questions}) == len(scene.questions)
        assert all(question.answer.strip() == question.answer != "" for question in scene.questions)
        assert scene.text
        if scene.image is not None:
            assert scene.image.mode == "RGB"
            assert 0.24 <= scene.image.width / scene.image.height <= 4.1


def test_aspect_ratios_reach_both_ends() -> None:
    ratios = [image.width / image.height for seed in range(150) if (image := draw("documents", seed=seed).image)]
    assert min(ratios) < 0.35
    assert max(ratios) > 2.9


def test_unknown_kinds_and_splits_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown kind 'maps': choose one of shapes, documents, charts, clips"):
        draw("maps", seed=0)
    with pytest.raises(ValueError, match="unknown split 'dev': choose train or test"):
        draw("shapes", seed=0, split="dev")  # pyright: ignore[reportArgumentType]


def test_samples_resume_by_index() -> None:
    stream = samples(seed=3)
    whole = [next(stream) for _ in range(7)]
    resumed = next(samples(seed=3, start=6))
    assert [scene.kind for scene in whole[:4]] == list(KINDS)
    assert digest(resumed) == digest(whole[6])
    assert digest(next(samples(seed=4))) != digest(whole[0])


def test_no_font_family_is_in_both_splits() -> None:
    train, test = ({face.package for face in FACES[split]} for split in SPLITS)
    assert not train & test
    assert len(train) >= 5
    assert len(test) >= 3


@pytest.mark.parametrize("face", [face for split in SPLITS for face in FACES[split]], ids=lambda face: face.file)
def test_every_face_draws_every_character_within_its_advance(face) -> None:
    masks = set()
    for char in CHARACTERS:
        drawn = letter(face, 40, char)
        assert drawn.mask is not None, char
        assert drawn.dx > -6, char
        assert drawn.dx + drawn.mask.width <= drawn.advance + 5, char
        masks.add((drawn.mask.size, drawn.dy, drawn.mask.tobytes()))
    assert len(masks) >= len(CHARACTERS) - 1  # no two look the same, but for I and l of some


@pytest.mark.parametrize("kind", ["documents", "charts"])
def test_glyph_boxes_hold_ink(kind: str) -> None:
    """Within each box some pixels stand far from others."""
    for seed in range(40):
        scene = draw(kind, seed=seed, split="test")
        grey = np.asarray(scene.image.convert("L")).astype(int)
        for glyph in scene.glyphs:
            left, top, right, bottom = (round(edge) for edge in glyph.box)
            inside = grey[max(top, 0) : bottom, max(left, 0) : right]
            assert inside.max() - inside.min() > 35, (seed, glyph)


def test_pages_hold_exactly_the_glyphs_of_their_text() -> None:
    for seed in range(60):
        scene = draw("documents", seed=seed)
        printed = "".join(glyph.char for glyph in scene.glyphs)
        lines = scene.text.split("\n")
        written = "".join(lines[:-1] if lines[-1].endswith(" sign") else lines)
        assert printed == written.replace(" ", "")


@pytest.mark.parametrize("kind", ["documents", "charts"])
def test_text_is_legible_where_the_model_looks(kind: str) -> None:
    """Capitals are at least 10 pixels high at the largest scale and no character leaves the picture."""
    for seed in range(150):
        scene = draw(kind, seed=seed)
        width, height = scene.image.size
        _, seen = seen_size(width, height)
        for glyph in scene.glyphs:
            left, top, right, bottom = glyph.box
            assert (bottom - top) * seen / height >= 10
            assert left > -2
            assert top > -2
            assert right < width + 2
            assert bottom < height + 2


@pytest.mark.parametrize("variety", [*MAKERS, "sign"])
def test_documents_answer_in_their_own_words(variety: str) -> None:
    for seed in range(40):
        scene = draw_document(Random(seed), "train", variety)
        flat = scene.text.replace("\n", " ")
        assert all(question.answer in flat for question in scene.questions)


def test_totals_add_up() -> None:
    for seed in range(60):
        scene = draw_document(Random(seed), "train", "receipt")
        amounts = [float(word) for word in scene.text.split() if word.replace(".", "").isdigit() and "." in word]
        assert sum(amounts[:-1]) == pytest.approx(amounts[-1])
        totals = [q.answer for q in scene.questions if "total" in q.question or "in all" in q.question]
        assert all(float(answer) == amounts[-1] for answer in totals)


def test_chart_answers_follow_from_the_numbers() -> None:
    checked = 0
    for seed in range(200):
        scene = draw("charts", seed=seed)
        rows = [line.split() for line in scene.text.split("\n")[1:]]
        value = {label: int(number) for label, number, _ in rows}
        for question in scene.questions:
            if "highest value?" in question.question and not question.question.startswith("Which label"):
                assert int(question.answer) == max(value.values())
            elif question.question.startswith("What is the value of"):
                assert int(question.answer) == value[question.question[21:-1]]
            elif question.question.startswith("Count the"):
                assert int(question.answer) == len(rows)
            elif question.question.startswith("Which label has the lowest"):
                assert value[question.answer] == min(value.values())
            else:
                continue
            checked += 1
    assert checked > 100


def test_shape_answers_follow_from_the_objects() -> None:
    for seed in range(150):
        scene = draw("shapes", seed=seed)
        colours = Counter(thing.colour for thing in scene.objects)
        there = {f"{thing.colour} {thing.name}" for thing in scene.objects}
        for question in scene.questions:
            if question.question in ("Count the shapes.", "How many shapes are there?"):
                assert int(question.answer) == len(scene.objects)
            if question.question.startswith("Is there a"):
                assert (question.answer == "yes") == (question.question.split(" ", 3)[3][:-1] in there)
            if question.question.startswith("How many") and question.question.split()[2] in colours:
                assert int(question.answer) == colours[question.question.split()[2]]


@pytest.mark.parametrize("kind", KINDS)
def test_a_blind_guesser_fails(kind: str) -> None:
    """The most frequent answer to each wording of 500 scenes is right on fewer than four in ten of others."""
    seen: dict[str, Counter[str]] = defaultdict(Counter)
    for seed in range(500):
        for question in draw(kind, seed=seed).questions:
            seen[question.question][question.answer] += 1
    right = asked = 0
    for seed in range(200):
        for question in draw(kind, seed=seed, split="test").questions:
            asked += 1
            if question.question in seen:
                right += seen[question.question].most_common(1)[0][0] == question.answer
    assert right / asked < 0.4
