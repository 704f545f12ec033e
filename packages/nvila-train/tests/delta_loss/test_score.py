"""Scores against a plain loop over samples and scores over the whole vocabulary, in every grouping."""

import copy
import math
from dataclasses import replace
from itertools import islice
from threading import Event

import PIL.Image
import pytest
import torch
from nvila_model import NVILA, Image
from nvila_model.inputs import IGNORE, Conversation
from nvila_model.network import Qwen2
from nvila_train import delta_loss
from nvila_train.data import SampleError
from nvila_train.delta_loss.choices import DeltaLossError
from nvila_train.delta_loss.forward.log_probabilities import LogProbability
from nvila_train.delta_loss.forward.windows import agree, ahead, windows
from nvila_train.delta_loss.score import Score, same_tower
from nvila_train.delta_loss.storage.records import Records


@torch.no_grad()
def plain(model: NVILA, conversation: Conversation) -> tuple[float, int]:
    """One conversation alone: softmax over the vocabulary in float64 at every position, then the labels' logarithms."""
    output = model(model.needed_processor().for_training(conversation))
    labels = output.fused.labels[0, 1:]
    chosen = output.logits[0, :-1].double().log_softmax(-1).gather(1, labels.clamp(min=0)[:, None])[:, 0]
    return float(chosen[labels != IGNORE].sum()), int((labels != IGNORE).sum())


def talks(records: Records) -> list[Conversation]:
    return [records.sample(row).messages for row in range(len(records))]


@pytest.fixture
def expected(records: Records, models: tuple[NVILA, NVILA]) -> list[tuple[tuple[float, int], ...]]:
    return [tuple(plain(model, talk) for model in models) for talk in talks(records)]


@pytest.mark.parametrize(
    "settings",
    [{}, {"positions": 1}, {"positions": 130}, {"window": 1}, {"window": 60_000, "workers": 3}],
    ids=["together", "alone", "small batches", "window of one", "threads"],
)
def test_scores_are_those_of_a_plain_loop(records, models, expected, settings):
    found = list(delta_loss(talks(records), *models, **settings))
    assert [(score.large.tokens, score.small.tokens) for score in found] == [
        (large[1], small[1]) for large, small in expected
    ]
    for score, (large, small) in zip(found, expected, strict=True):
        assert score.large.total == pytest.approx(large[0], rel=1e-6, abs=1e-5)
        assert score.small.total == pytest.approx(small[0], rel=1e-6, abs=1e-5)
        assert score.delta() == pytest.approx(large[0] - small[0], abs=2e-5)


def test_samples_share_rows_and_stay_apart(records, models, expected):
    """The texts of one answer in one row: the mask is what keeps them apart."""
    texts = [0, 6, 7, 0, 7]
    found = list(delta_loss([records.sample(row).messages for row in texts], *models, positions=90))
    assert [score.large.total for score in found] == pytest.approx([expected[row][0][0] for row in texts], rel=1e-6)


def test_models_may_read_differently(records, models, make_tiny):
    """A small model with tiles of its own gets its own inputs."""
    small = make_tiny(16)
    small.processor = replace(small.needed_processor(), tiler=small.tiler.single())
    assert not agree(models[0].needed_processor(), small.needed_processor())
    found = list(delta_loss(talks(records), models[0], small))
    for score, talk in zip(found, talks(records), strict=True):
        assert score.small.total == pytest.approx(plain(small, talk)[0], rel=1e-6, abs=1e-5)


@pytest.fixture
def run(monkeypatch, models) -> dict[str, list[int]]:
    """What goes through the models: tiles and positions of each call."""
    found = {"tiles": [], "positions": []}
    for kind, name, size in (
        (type(models[0].vision), "tiles", lambda tiles: len(tiles)),
        (Qwen2, "positions", lambda embeds: embeds.shape[0] * embeds.shape[1]),
    ):
        forward = kind.forward

        def counted(self, given, *, forward=forward, name=name, size=size, **options):
            found[name].append(size(given))
            return forward(self, given, **options)

        monkeypatch.setattr(kind, "forward", counted)
    return found


def test_a_shared_picture_is_encoded_once(records, models, run):
    talk = records.sample(1).messages
    (once,) = delta_loss([talk], *models)
    tiles = sum(run["tiles"])
    run["tiles"].clear()
    for score in delta_loss([talk, records.sample(1).messages], *models):
        assert score.large.total == pytest.approx(once.large.total, rel=1e-6)
        assert score.small.total == pytest.approx(once.small.total, rel=1e-6)
    assert sum(run["tiles"]) == tiles


def test_equal_tiles_go_through_the_tower_once(models, run):
    """A picture of one colour is one tile, and the loop looks at seven: one from afar and 2 x 3 from near."""
    white = Image(PIL.Image.new("RGB", (96, 64), "white"))
    talk = [{"role": "user", "content": [white, "What?"]}, {"role": "assistant", "content": "nothing"}]
    (found,) = delta_loss([talk], *models)
    assert run["tiles"] == [1, 1]
    run["tiles"].clear()
    assert found.large.total == pytest.approx(plain(models[0], talk)[0], rel=1e-6)
    assert run["tiles"] == [7]


def seen_and_asked(records, *questions: str) -> list[Conversation]:
    """One picture, asked about several times; a text as well."""
    (picture, _), text = records.sample(1).messages[0]["content"], "Rain on Monday, sun on Tuesday, wind all week. " * 3
    return [
        [{"role": "user", "content": [first, question]}, {"role": "assistant", "content": answer}]
        for first in (picture, text)
        for question, answer in zip(questions, ("red", "so it is", "red"), strict=False)
    ]


def test_samples_that_begin_alike_share_their_beginning(records, models, run):
    """Three questions after one picture and three after one text, two of them the same, and one asked further."""
    samples = seen_and_asked(records, "Which?", "Is it a square?", "Is it a square?")
    samples.append([*samples[0], {"role": "user", "content": "Sure?"}, {"role": "assistant", "content": "yes"}])
    found = list(delta_loss(samples, *models))
    together = sum(run["positions"])
    run["positions"].clear()
    for score, talk in zip(found, samples, strict=True):
        assert score.large.total == pytest.approx(plain(models[0], talk)[0], rel=1e-6)
        assert score.small.total == pytest.approx(plain(models[1], talk)[0], rel=1e-6)
    assert together < 0.7 * sum(run["positions"])


def test_models_with_one_tower_look_once(records, models, make_tiny, run):
    """Trained with a frozen tower, two models differ behind it only."""
    large, small = models[0], make_tiny(16)
    small.vision.load_state_dict(large.vision.state_dict())
    assert same_tower(large, small)
    seen = run["tiles"]
    found = list(delta_loss(talks(records), large, small))
    once = sum(seen)
    seen.clear()
    next(small.vision.parameters()).data.view(-1)[-1] += 1e-3
    assert not same_tower(large, small)
    list(delta_loss(talks(records), large, small))
    assert sum(seen) == 2 * once
    small.vision.load_state_dict(large.vision.state_dict())
    for score, talk in zip(found, talks(records), strict=True):
        assert score.small.total == pytest.approx(plain(small, talk)[0], rel=1e-6, abs=1e-5)


def test_a_tower_of_another_depth_or_kind_is_another(models):
    large = models[0]
    assert same_tower(large, large)
    deeper = copy.copy(large)
    deeper.config = large.config.model_copy(update={"mm_vision_select_layer": -2})
    assert not same_tower(large, deeper)
    unknown = copy.copy(large)
    unknown.config = None
    assert not same_tower(large, unknown)


def test_a_window_holds_what_fits(records, models):
    processor = models[0].needed_processor()
    one = list(windows(talks(records), [processor] * 2, limit=1))
    assert [len(window) for window in one] == [1, 1, 1, 1, 1, 1, 2]  # texts have no tiles
    (whole,) = windows(talks(records), [processor] * 2, limit=2**30)
    assert [sample.number for sample in whole] == list(range(len(records)))
    assert whole[1].inputs[0] is whole[1].inputs[1]
    assert whole[1].inputs[0].images[0] is whole[3].inputs[0].images[0]


def test_the_next_window_is_made_while_one_is_scored():
    begun = [Event() for _ in range(4)]

    def made():
        for number, event in enumerate(begun[:3]):
            event.set()
            yield [number]
        begun[3].set()
        raise DeltaLossError("row 3")

    found = []
    windows = ahead(made())
    for window in islice(windows, 3):
        found.append(window)
        assert begun[len(found)].wait(10)
        assert not any(event.is_set() for event in begun[len(found) + 1 :])
    assert found == [[0], [1], [2]]
    with pytest.raises(DeltaLossError, match="row 3"):
        next(windows)


def test_time_tokens_are_tokens(records, models, expected):
    """The bell curve of training would give no probabilities."""
    large, small = models
    large.config.time_token_ids = large.needed_processor().tokenizer.encode("abcdefgh")
    try:
        found = list(delta_loss(talks(records), large, small))
    finally:
        large.config.time_token_ids = []
    assert [score.large.total for score in found] == pytest.approx([large[0] for large, _ in expected], rel=1e-6)


def test_normalized_by_hand():
    score = Score(large=LogProbability(total=-6.0, tokens=4), small=LogProbability(total=-10.0, tokens=5))
    assert score.delta() == 4.0
    assert score.delta("tokens") == 0.5


def test_a_sample_that_cannot_be_used_is_named(records, models, tmp_path):
    question = [{"role": "user", "content": "What?"}]
    talk = [*question, {"role": "assistant", "content": "no"}]
    with pytest.raises(DeltaLossError, match=r"^row 8 has no answer to score: give it a turn of the assistant$"):
        list(delta_loss([talk, question], *models, first=7))
    long = [*question, {"role": "assistant", "content": "word " * 600}]
    with pytest.raises(DeltaLossError, match=r"^row 1 takes \d+ positions > 512 of the large model: shorten it"):
        list(delta_loss([talk, long], *models))
    talk = records.sample(1).messages
    (tmp_path / "wide.png").unlink()
    with pytest.raises(DeltaLossError, match=r"^row 0: no file at .*wide\.png$"):
        list(delta_loss([talk], *models))
    with pytest.raises(SampleError, match=r"^mix\.jsonl row 2: image: no file at .*wide\.png$"):
        records.sample(1)


@pytest.mark.parametrize("name", ["positions", "window", "workers"])
def test_settings_are_checked(models, name):
    with pytest.raises(DeltaLossError, match=f"{name} 0.* must all be at least 1"):
        list(delta_loss([], *models, **{name: 0}))


def test_nothing_gives_nothing(models):
    assert list(delta_loss([], *models)) == []
    assert math.isfinite(sum(score.delta() for score in delta_loss([], *models)))
