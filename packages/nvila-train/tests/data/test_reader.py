"""Ranks share the samples; workers, stops and resumes change nothing; faulty samples are left out up to a limit."""

import warnings
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from nvila_train.data import ConversationDataset, DataError, DataSource, Reader, Sample, SampleError, SkipWarning
from nvila_train.data.workers import in_order

FORKING = pytest.mark.filterwarnings(
    "ignore:This DataLoader will create:UserWarning",  # a runner with one core
    "ignore:This process .* is multi-threaded:DeprecationWarning",  # Python 3.12's word on fork
)


def answer(sample: Sample) -> str:
    return sample.messages[1]["content"][0]


def refuse_sevens(sample: Sample) -> str:
    if answer(sample).endswith("7"):
        raise OSError("sevens cannot be read")
    return answer(sample)


def test_ranks_share_the_samples(numbered: Callable[..., Path]) -> None:
    dataset = ConversationDataset(numbered(23), seed=4)
    alone = list(Reader(dataset, answer, stop=23))
    assert len(set(alone)) == 23
    for world in (2, 4):
        parts = [list(Reader(dataset, answer, rank=rank, world=world, stop=23)) for rank in range(world)]
        assert [parts[number % world][number // world] for number in range(23)] == alone


@FORKING
@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(numbered: Callable[..., Path], workers: int) -> None:
    dataset = ConversationDataset(numbered(17), seed=4)
    with pytest.warns(SkipWarning):
        alone = list(Reader(dataset, refuse_sevens, rank=1, world=2, stop=40))
    with pytest.warns(SkipWarning):
        assert list(Reader(dataset, refuse_sevens, rank=1, world=2, stop=40, workers=workers)) == alone


@FORKING
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("stop", [1, 6])
def test_resumes_on_the_very_next_sample(numbered: Callable[..., Path], workers: int, stop: int) -> None:
    """Stopped by its state after ``stop`` samples, while worker processes had made others ahead."""
    dataset = ConversationDataset(numbered(10), seed=4)
    whole = list(Reader(dataset, answer, rank=1, world=2, stop=30))
    first = Reader(dataset, answer, rank=1, world=2, stop=30, workers=workers)
    seen = list(islice(first, stop))
    state = first.state_dict()
    assert state == {"next": 2 * stop, "skipped": 0}
    again = Reader(dataset, answer, rank=1, world=2, stop=30, workers=workers)
    again.load_state_dict(state)
    assert seen + list(again) == whole
    assert list(again) == []


def test_resumes_in_a_world_of_another_size(numbered: Callable[..., Path]) -> None:
    dataset = ConversationDataset(numbered(10), seed=4)
    whole = list(Reader(dataset, answer, stop=24))
    two = [Reader(dataset, answer, rank=rank, world=2) for rank in range(2)]
    begun = [list(islice(reader, 4)) for reader in two]
    four = [Reader(dataset, answer, rank=rank, world=4, stop=24) for rank in range(4)]
    for reader in four:
        reader.load_state_dict(two[0].state_dict())
    parts = [*zip(*begun, strict=True), *zip(*map(list, four), strict=True)]
    assert [sample for group in parts for sample in group] == whole


def faulty(write: Callable[..., Path], records: list[dict[str, Any]]) -> Path:
    """Rows 1, 3 and 4 cannot be used."""
    sound = records[2]
    lines = [sound, {"conversations": []}, sound, {**sound, "image": "none.png"}, sound]
    path = write(lines)
    text = path.read_text().splitlines()
    path.write_text("\n".join([*text[:4], text[4][:-9], ""]))
    return path


def test_faulty_samples_are_reported_and_left_out(write: Callable[..., Path], records: list[dict[str, Any]]) -> None:
    dataset = ConversationDataset(DataSource(path=str(faulty(write, records)), name="mine"), shuffle=False)
    reader = Reader(dataset, stop=5, skip=3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert [sample.row for sample in reader] == [1, 3]
    told = [str(warning.message) for warning in caught]
    assert [line.split(":")[0] for line in told] == [f"left out mine row {row}" for row in (2, 4, 5)]
    assert "conversations: is missing or empty" in told[0]
    assert "image: no file at" in told[1]
    assert "row: is not JSON" in told[2]
    assert told[2].endswith("(3 of at most 3)")
    assert reader.state_dict() == {"next": 5, "skipped": 3}


@FORKING
@pytest.mark.filterwarnings("ignore::nvila_train.data.SkipWarning")
@pytest.mark.parametrize("workers", [0, 2])
def test_the_run_stops_beyond_the_limit(
    write: Callable[..., Path], records: list[dict[str, Any]], workers: int
) -> None:
    dataset = ConversationDataset(DataSource(path=str(faulty(write, records)), name="mine"), shuffle=False)
    said = r"3 samples cannot be used, the limit is 2; the last was mine row 5: row: is not JSON.*nvila-train check"
    with pytest.raises(DataError, match=said):
        list(Reader(dataset, skip=2, workers=workers, stop=9))
    resumed = Reader(dataset, skip=2, workers=workers)
    resumed.load_state_dict({"next": 2, "skipped": 1})
    with pytest.raises(DataError, match="3 samples"):
        list(resumed)


def test_a_faulty_sample_is_named(write: Callable[..., Path], records: list[dict[str, Any]]) -> None:
    dataset = ConversationDataset(faulty(write, records), shuffle=False)
    with pytest.raises(SampleError, match=r"train.jsonl row 7: |train.jsonl row 2: conversations: is missing"):
        dataset[6]


def test_a_rank_that_is_not_there(numbered: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match="rank 2 is not below world 2"):
        Reader(ConversationDataset(numbered(1)), rank=2, world=2)


@FORKING
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves its shard to the collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the same, said by pytest
def test_a_stream_with_workers(tmp_path: Path, records: list[dict[str, Any]]) -> None:
    """Also where this process has read from the stream before its workers begin."""
    import io
    import json
    import tarfile

    pytest.importorskip("webdataset")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for number in range(20):
            data = json.dumps({**records[2], "id": number}).encode()
            info = tarfile.TarInfo(f"{number}.json")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    dataset = ConversationDataset(DataSource(path=str(tmp_path / "x.tar"), streaming=True), seed=1)
    alone = [sample.record["id"] for sample in Reader(dataset, stop=50)]
    assert sorted(alone[:20]) == sorted(alone[20:40]) == list(range(20))
    assert [sample.record["id"] for sample in Reader(dataset, stop=50, workers=2)] == alone


@FORKING
def test_work_done_ahead_comes_in_order() -> None:
    assert list(in_order(str, [3, 1, 2], workers=2)) == list(in_order(str, [3, 1, 2], workers=0)) == ["3", "1", "2"]
