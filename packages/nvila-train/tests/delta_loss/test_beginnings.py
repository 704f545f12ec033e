"""Laws of samples that share what they begin with."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nvila_model import Image
from nvila_train.delta_loss.forward.families import Family, alike, beginnings, families, segments_of
from nvila_train.delta_loss.forward.log_probabilities import encoded, features
from PIL import Image as Pillow
from torch import Tensor

texts = st.lists(st.lists(st.integers(0, 1), max_size=12), max_size=12)


def shared(lists: list[list[int]]) -> list[Tensor]:
    return [torch.tensor(values, dtype=torch.int64) for values in lists]


@settings(deadline=None)
@given(texts, st.integers(1, 5), st.integers(1, 80))
def test_families_hold_every_sample_once_and_pay(lists: list[list[int]], rest: int, positions: int):
    lengths = [len(values) + rest + place % 3 for place, values in enumerate(lists)]
    found = families(shared(lists), lengths, positions)
    assert sorted(sample for family in found for sample in family.samples) == list(range(len(lists)))
    for family in found:
        own = [lengths[sample] for sample in family.samples]
        assert [family.common + rest for rest in family.rests] == own
        assert family.length <= sum(own)
        if len(own) == 1:
            assert family.common == 0
        else:
            assert len({tuple(lists[sample][: family.common]) for sample in family.samples}) == 1
            assert 2 * family.common >= max(own)
            assert family.length <= min(positions, 2 * max(own))


def test_families_by_hand():
    """Three after 7 1 7 1, of which the last does not fit; what shares too little, and what shares nothing."""
    lists = [[7, 1, 7, 1, 2], [7, 1, 7, 1, 3], [8], [7, 1, 7, 1, 4], [7, 9]]
    found = families(shared(lists), [6, 7, 3, 8, 8], 100)
    assert found == [
        Family(samples=(0, 1, 3), common=4, rests=(2, 3, 4)),
        Family(samples=(4,), common=0, rests=(8,)),
        Family(samples=(2,), common=0, rests=(3,)),
    ]
    assert [family.samples for family in families(shared(lists), [6, 7, 3, 8, 8], 9)] == [(0, 1), (3,), (4,), (2,)]
    assert families([], [], 9) == []


def test_alike_stops_at_the_first_difference():
    one, other = shared([[1, 2, 3, 4], [1, 2, 9, 4, 5]])
    assert (alike(one, other), alike(one, one), alike(one, other[:0])) == (2, 4, 0)


def test_segments_by_hand():
    """Two that share two positions, and a sample alone behind them."""
    pair = Family(samples=(3, 0), common=2, rests=(1, 2))
    places, owners, common = segments_of([pair, Family(samples=(1,), common=0, rests=(3,))])
    assert places.tolist() == [0, 1, 2, 2, 3, 0, 1, 2]
    assert owners.tolist() == [0, 0, 1, 2, 2, 4, 4, 4]
    assert common.tolist() == [0, 0, 0, 0, 0, 3, 3, 3]
    pieces = [torch.tensor([1, 2, 30]), torch.tensor([1, 2, 40, 41])]
    assert pair.join(pieces).tolist() == [1, 2, 30, 40, 41]


def test_a_beginning_ends_where_the_answer_is_predicted(models):
    """The picture has one number at all of its positions; its copy is another picture."""
    model = models[0]
    picture, copy = (Image(Pillow.new("RGB", (20, 20))) for _ in range(2))
    processor = model.needed_processor()
    talks = [
        [{"role": "user", "content": [seen, "What?"]}, {"role": "assistant", "content": "no"}]
        for seen in (picture, copy)
    ]
    samples = [processor.for_training(talk) for talk in talks]
    first, second = beginnings(samples, encoded(model, samples, features(model, samples)))
    ids, labels = samples[0].input_ids[0].tolist(), samples[0].labels[0].tolist()
    end = next(place for place, label in enumerate(labels) if label >= 0) - 1
    expected = [
        number
        for id_ in ids[:end]
        for number in (
            [-1] * model.image_tokens(samples[0].images[0]) if id_ == processor.tokenizer.image_id else [id_]
        )
    ]
    assert first.tolist() == expected
    assert second.tolist() == [-2 if number == -1 else number for number in expected]
