"""Orders are random, the same everywhere, and complete; mixtures keep their weights."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nvila_train.data import ConversationDataset, DataSource, SourceError
from nvila_train.data.order.epochs import WINDOW, Windows
from nvila_train.data.order.mixture import BLOCK, Mixture, shares
from nvila_train.data.order.shuffle import key_of, shuffled
from nvila_train.data.stored.stream import Stream


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 700), key=st.integers(0, 2**64 - 1))
def test_a_shuffled_order_holds_every_number_once(length: int, key: int) -> None:
    assert sorted(shuffled(place, length, key=key) for place in range(length)) == list(range(length))


def test_a_shuffled_order_is_even() -> None:
    """Chi-squared over where each of 10 numbers goes, and over the neighbours of one: far from any pattern."""
    places = Counter((place, shuffled(place, 10, key=key_of(key))) for key in range(2000) for place in range(10))
    assert len(places) == 100
    assert sum((count - 200) ** 2 / 200 for count in places.values()) < 81 + 5 * (2 * 81) ** 0.5
    gaps = Counter((shuffled(3, 10, key=key_of(key)) - shuffled(2, 10, key=key_of(key))) % 10 for key in range(2000))
    assert sum((gaps[gap] - 2000 / 9) ** 2 / (2000 / 9) for gap in range(1, 10)) < 8 + 5 * 4


def test_orders_are_the_same_everywhere() -> None:
    """Written down: a run that is resumed on another machine or another Python must go on with the same samples."""
    assert key_of(1, "a") == 0x97D0CEAE8AE26BA9
    assert [shuffled(place, 7, key=5) for place in range(7)] == [0, 6, 2, 4, 3, 5, 1]


@pytest.mark.parametrize(
    ("weights", "counts"),
    [
        ([3.0], [1000]),
        ([1, 1], [500, 500]),
        ([1, 2], [333, 667]),
        ([1, 1, 1], [334, 333, 333]),
        ([1e-9, 1], [1, 999]),
        ([1e-9] * 5 + [1], [1] * 5 + [995]),
        ([1.0] * 1000, [1] * 1000),
    ],
)
def test_shares_by_hand(weights: list[float], counts: list[int]) -> None:
    assert shares(weights) == counts


def test_more_sources_than_a_block_has_samples() -> None:
    with pytest.raises(SourceError, match="1001 sources > 1000"):
        shares([1.0] * 1001)


def test_a_mixture_takes_each_source_in_its_order() -> None:
    mixture = Mixture([1, 3], seed=2)
    places = [mixture.place(number) for number in range(3 * BLOCK)]
    for source, count in ((0, 750), (1, 2250)):
        assert [place for which, place in places if which == source] == list(range(count))
    again, other = Mixture([1, 3], seed=2), Mixture([1, 3], seed=3)
    assert places == [again.place(number) for number in reversed(range(3 * BLOCK))][::-1]
    assert places != [other.place(number) for number in range(3 * BLOCK)]
    first = [which for which, _ in places[:BLOCK]]
    assert first != [which for which, _ in places[BLOCK : 2 * BLOCK]]


def rows_of(dataset: ConversationDataset, numbers: range) -> list[tuple[str, int]]:
    return [(dataset[number].source, dataset[number].row) for number in numbers]


def test_an_epoch_without_weights_holds_every_row_once(numbered: Callable[..., Path]) -> None:
    paths = [numbered(5, "a.jsonl"), numbered(12, "b.jsonl")]
    dataset = ConversationDataset(paths, seed=1)
    assert len(dataset) == 17
    everything = [("a.jsonl", row) for row in range(1, 6)] + [("b.jsonl", row) for row in range(1, 13)]
    first, second = rows_of(dataset, range(17)), rows_of(dataset, range(17, 34))
    assert sorted(first) == sorted(second) == everything
    assert first != second
    assert everything not in (first, second)
    assert rows_of(ConversationDataset(paths, seed=1), range(17)) == first
    assert rows_of(ConversationDataset(paths, seed=2), range(17)) != first
    assert rows_of(ConversationDataset(paths, shuffle=False), range(20)) == [*everything, *everything[:3]]


def test_a_weighted_mixture_keeps_its_weights_and_names(numbered: Callable[..., Path]) -> None:
    sources = [
        DataSource(path=str(numbered(5, "a.jsonl")), weight=1, name="often"),
        DataSource(path=str(numbered(9, "b.jsonl")), weight=3),
    ]
    dataset = ConversationDataset(sources)
    found = rows_of(dataset, range(BLOCK))
    assert Counter(source for source, _ in found) == {"often": 250, "b.jsonl": 750}
    assert all(count == 50 for count in Counter(row for source, row in found if source == "often").values())
    assert dataset[0].messages[1]["content"][0].split()[0] in ("a.jsonl", "b.jsonl")


@pytest.mark.parametrize("length", [1, WINDOW - 1, WINDOW, WINDOW + 3, 2 * WINDOW])
def test_a_stream_is_shuffled_in_windows(length: int) -> None:
    opened: list[int] = []

    def open_at(start: int) -> Iterator[int]:
        opened.append(start)
        yield from range(start, length)

    windows = Windows(Stream(open_at), seed="s")
    found = [windows.read(*windows.find(place)) for place in range(2 * length)]
    first, second = found[:length], found[length:]
    assert sorted(first) == sorted(second) == list(range(length))
    for at in range(0, length, WINDOW):
        assert sorted(first[at : at + WINDOW]) == list(range(at, min(at + WINDOW, length)))
    assert len(opened) <= 4  # once an epoch, and where the end was met
    assert length < 9 or first != second
    resumed = Windows(Stream(open_at), seed="s")
    rest = range(length + length // 2, 2 * length)
    assert [resumed.read(*resumed.find(place)) for place in rest] == second[length // 2 :]


def test_an_empty_stream_ends_the_run() -> None:
    with pytest.raises(SourceError, match="streamed source has no rows"):
        Windows(Stream(lambda start: iter(())), seed=None).find(0)


def test_a_stream_that_became_shorter_ends_the_run() -> None:
    lengths = iter([3, 1, 1])
    windows = Windows(Stream(lambda start: iter(range(start, next(lengths)))), seed=None)
    assert windows.find(3) == (0, 0)
    with pytest.raises(SourceError, match="had 3 rows and now ends before row 1"):
        [windows.find(place) for place in (1000, 4)]


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        ([], "no source of data: give at least one path"),
        (["x/a.jsonl", "y/a.jsonl"], "two sources are called 'a.jsonl': give each a name"),
        ([DataSource(path="a.jsonl", weight=1), "b.jsonl"], "source 'b.jsonl' has no weight but others have"),
    ],
)
def test_sources_that_cannot_be_mixed(sources: list[str | DataSource], said: str) -> None:
    with pytest.raises(SourceError, match=said):
        ConversationDataset(sources)


def test_a_stream_among_others_needs_a_weight(tmp_path: Path, numbered: Callable[..., Path]) -> None:
    (tmp_path / "x.tar").write_bytes(b"")
    stream = DataSource(path=str(tmp_path / "x.tar"), streaming=True)
    with pytest.raises(SourceError, match="no known length: give every source a weight"):
        ConversationDataset([numbered(2), stream])
    with pytest.raises(TypeError, match="no known length"):
        len(ConversationDataset([stream]))
