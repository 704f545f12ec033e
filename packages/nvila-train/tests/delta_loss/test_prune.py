"""Laws of pruning, tables by hand, and clusters."""

import sys
from collections import Counter
from fractions import Fraction
from math import ceil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nvila_model import NVILA
from nvila_train import prune
from nvila_train.delta_loss.choices import DeltaLossError
from nvila_train.delta_loss.cluster import NOTHING_SEEN, assign, cluster, feature
from nvila_train.delta_loss.prune import evenly
from nvila_train.delta_loss.score_table import Scores
from nvila_train.delta_loss.storage.records import Records


def table(delta: list[float], sources: list[str] | None = None, tokens: list[int] | None = None) -> Scores:
    count = len(delta)
    lengths = np.array(tokens or [1] * count)
    return Scores(
        row=np.arange(count) + 10, source=tuple(sources or ["a"] * count), large=np.array(delta, dtype=np.float64),
        small=np.zeros(count), large_tokens=lengths, small_tokens=lengths, facts={},
    )  # fmt: skip


# A loaded machine is no fault of the law.
at_leisure = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
SAMPLES = st.lists(
    st.tuples(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), st.sampled_from("abc"), st.integers(0, 3)), min_size=1
)


@at_leisure
@given(SAMPLES, st.integers(1, 100), st.sampled_from(["deltaloss", "random", "cluster"]))
def test_counts_are_exact_whatever_the_method(samples, percent, method):
    delta, sources, clusters = map(list, zip(*samples, strict=True))
    kept = prune(table(delta, sources), keep=percent / 100, method=method, clusters=clusters).kept
    for source, count in Counter(sources).items():
        stays = sum(bool(stay) for stay, name in zip(kept, sources, strict=True) if name == source)
        assert stays == ceil(Fraction(percent, 100) * count)


@at_leisure
@given(SAMPLES, st.integers(1, 100))
def test_nothing_that_goes_is_better_than_what_stays(samples, percent):
    delta, sources, _ = map(list, zip(*samples, strict=True))
    found = prune(table(delta, sources), keep=percent / 100)
    for source, cut in found.cuts.items():
        rows = [row for row, name in enumerate(sources) if name == source]
        stay = [row for row in rows if found.kept[row]]
        go = [row for row in rows if not found.kept[row]]
        assert min(delta[row] for row in stay) == cut
        assert all((delta[row], -row) < min((delta[other], -other) for other in stay) for row in go)


@at_leisure
@given(SAMPLES, st.sampled_from(["deltaloss", "random", "cluster"]))
def test_all_stay(samples, method):
    delta, sources, clusters = map(list, zip(*samples, strict=True))
    assert prune(table(delta, sources), keep=1, method=method, clusters=clusters).kept.all()


def test_ten_percent_of_thirty_are_three():
    """0.1 * 30 is 3.0000000000000004 in floating point."""
    assert prune(table([0.0] * 30), keep=0.1).kept.sum() == 3


def test_by_source_and_together_by_hand():
    scores = table([4.2, 0.03, -1.9, 9.0, 8.0], ["a", "a", "a", "b", "b"])
    assert prune(scores, keep=0.5).kept.tolist() == [True, True, False, True, False]
    assert prune(scores, keep=0.5).cuts == {"a": 0.03, "b": 9.0}
    assert prune(scores, keep=0.5, by="all").kept.tolist() == [True, False, False, True, True]
    assert prune(scores, keep=0.5, by="all").cuts == {"all": 4.2}


def test_means_by_hand():
    scores = table([4.0, 3.0], tokens=[8, 2])
    assert prune(scores, keep=0.5).kept.tolist() == [True, False]
    assert prune(scores, keep=0.5, normalize="tokens").kept.tolist() == [False, True]


def test_draws_follow_the_seed():
    scores = table([0.0] * 50, ["a", "b"] * 25)
    first, again, other = (prune(scores, keep=0.3, method="random", seed=seed).kept for seed in (1, 1, 2))
    assert (first == again).all()
    assert (first != other).any()


@at_leisure
@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.data())
def test_clusters_give_evenly(clusters, data):
    """No cluster gives two more than another that has some left."""
    count = data.draw(st.integers(1, len(clusters)))
    chosen = evenly(np.arange(len(clusters)), np.array(clusters), count, np.random.default_rng(0))
    assert len(set(chosen.tolist())) == count
    given_ = Counter(clusters[place] for place in chosen)
    left = [name for name, size in Counter(clusters).items() if given_[name] < size]
    assert all(given_[name] >= max(given_.values()) - 1 for name in left)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"keep": 0}, "keep 0 is not a share: use a number above 0 and at most 1"),
        ({"keep": 1.5}, "keep 1.5 is not a share"),
        ({"keep": float("nan")}, "keep nan is not a share"),
        ({"keep": 0.5, "method": "best"}, "'best' is not one of deltaloss, random, cluster"),
        ({"keep": 0.5, "by": "row"}, "'row' is not one of source, all"),
        ({"keep": 0.5, "normalize": "words"}, "'words' is not one of none, tokens"),
        ({"keep": 0.5, "method": "cluster"}, "method cluster needs the cluster of each of 2 rows: pass clusters"),
        ({"keep": 0.5, "method": "cluster", "clusters": [1]}, "needs the cluster of each of 2 rows"),
    ],
)
def test_settings_are_checked(settings, said):
    with pytest.raises(DeltaLossError, match=said):
        prune(table([1.0, 2.0]), **settings)


def test_a_score_that_is_not_a_number_is_named():
    with pytest.raises(DeltaLossError, match="the score of row 11 is not finite"):
        prune(table([1.0, float("nan")]), keep=0.5)


def test_a_feature_is_the_mean_over_patches_and_pictures(records: Records, models: tuple[NVILA, NVILA]):
    model = models[0]
    talk = records.sample(3).messages
    with torch.no_grad():
        single = model.needed_processor().tiler.single()
        pictures = [single(part.load()).tiles for part in talk[0]["content"] if not isinstance(part, str)]
        expected = torch.stack([model.vision(tiles)[0].double().mean(0) for tiles in pictures]).mean(0)
    assert feature(model, 0, talk) == pytest.approx(expected.numpy(), abs=1e-6)


def test_clusters_of_records(records: Records, models: tuple[NVILA, NVILA], tmp_path: Path):
    """The same picture, the same cluster; no picture, no cluster."""
    rows = [1, 0, 5, 1, 4]
    found = cluster([records.sample(row).messages for row in rows], models[0], count=3)
    assert found[0] == found[3] != found[2]
    assert found[1] == NOTHING_SEEN
    assert len(set(found.tolist())) == 4
    talk = records.sample(1).messages
    (tmp_path / "wide.png").unlink()
    with pytest.raises(DeltaLossError, match=r"row 0: no file at .*wide\.png"):
        cluster([talk], models[0])


def test_clusters_are_found():
    """Two heaps far apart are two clusters, whatever the seed."""
    rng = np.random.default_rng(0)
    heaps = [rng.normal(centre, 0.1, 4) for centre in (0.0, 9.0) for _ in range(10)]
    found = assign(heaps, count=2, seed=3)
    assert len(set(found[:10])) == len(set(found[10:])) == 1
    assert found[0] != found[10]
    assert assign([None], count=2, seed=0).tolist() == [NOTHING_SEEN]


def test_clusters_need_a_number_and_scikit_learn(monkeypatch):
    with pytest.raises(DeltaLossError, match="0 clusters hold nothing: use at least 1"):
        assign([], count=0, seed=0)
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(DeltaLossError, match=r"scikit-learn: pip install 'nvila-train\[prune\]'"):
        assign([], count=1, seed=0)
