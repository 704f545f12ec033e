"""A file of scores: the same bytes after an interruption and from any number of processes."""

import multiprocessing
import runpy
import sys
from pathlib import Path

import pytest
from nvila_model import NVILA
from nvila_train import delta_loss
from nvila_train.delta_loss.choices import DeltaLossError
from nvila_train.delta_loss.score_records import score_records
from nvila_train.delta_loss.score_table import Scores
from nvila_train.delta_loss.storage.records import Records

WORKER = Path(__file__).parents[1] / "processes" / "scoring.py"

Models = tuple[NVILA, NVILA]


@pytest.fixture
def whole(records: Records, models: Models, tmp_path: Path) -> bytes:
    """The file of a run that was never stopped."""
    out = tmp_path / "whole.parquet"
    assert score_records(records, out, *models, shard=3)
    return out.read_bytes()


def test_the_file_holds_the_scores(records: Records, models: Models, whole: bytes, tmp_path: Path):
    found = Scores.read(tmp_path / "whole.parquet")
    expected = list(delta_loss([records.sample(row).messages for row in range(len(records))], *models))
    assert found.row.tolist() == list(range(len(records)))
    assert found.source == ("text", "mix", "text", "mix", "mix", "mix", "text", "text")
    assert found.delta() == pytest.approx([score.delta() for score in expected], abs=1e-5)
    assert found.delta("tokens") == pytest.approx([score.delta("tokens") for score in expected], abs=1e-5)
    assert found.facts["data"] == records.source.path
    assert not (tmp_path / "whole.parquet.parts").exists()


def test_a_run_goes_on_after_an_interruption(records: Records, models: Models, whole: bytes, tmp_path: Path):
    out = tmp_path / "again.parquet"
    done = []

    def stop(rows: int) -> None:
        done.append(rows)
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_records(records, out, *models, shard=3, report=stop)
    parts = tmp_path / "again.parquet.parts"
    written = {path.name: path.stat().st_mtime_ns for path in parts.iterdir()}
    assert sorted(written) == ["00000.parquet", "00001.parquet"]
    (parts / "00002.parquet.17.new").write_bytes(b"PAR1")  # a process that was killed while it wrote
    assert score_records(records, out, *models, shard=3, report=done.append)
    assert done == [3, 3, 3, 3, 2]
    assert out.read_bytes() == whole


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_processes_share_the_shards(records: Records, models: Models, whole: bytes, tmp_path: Path, order):
    out = tmp_path / "shared.parquet"
    done = [score_records(records, out, *models, shard=3, rank=rank, world=2) for rank in order]
    assert done == [False, True]
    assert out.read_bytes() == whole
    assert score_records(records, out, *models, shard=3, rank=0, world=2)


def test_two_processes_of_torchrun_make_the_file_of_one(records: Records, models: Models, tmp_path: Path):
    """Two real processes with models read from folders, at the same time."""
    out = tmp_path / "two.parquet"
    arguments = ["score", records.source.path, "--shard", "3", "--out", str(out)]
    for name, model in zip(("large", "small"), models, strict=True):
        model.save_pretrained(str(tmp_path / name))
        arguments += [f"--{name}", str(tmp_path / name)]
    context = multiprocessing.get_context("forkserver")  # imports once, for all processes of all tests
    processes = [
        context.Process(
            target=runpy.run_path,
            args=(str(WORKER), {"SETTINGS": {"rank": rank, "world": 2, "arguments": arguments}}, "__main__"),
        )
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0]
    large, small = (NVILA.from_pretrained(str(tmp_path / name)) for name in ("large", "small"))
    assert score_records(records, tmp_path / "one.parquet", large, small, shard=3)
    assert out.read_bytes() == (tmp_path / "one.parquet").read_bytes()
    assert not (tmp_path / "two.parquet.parts").exists()


def test_a_lost_process_is_started_again_alone(records: Records, models: Models, whole: bytes, tmp_path: Path):
    out = tmp_path / "lost.parquet"
    assert not score_records(records, out, *models, shard=3, rank=1, world=3)
    assert score_records(records, out, *models, shard=3)
    assert out.read_bytes() == whole


def test_scores_of_something_else_are_not_taken(records: Records, models: Models, whole: bytes, tmp_path: Path):
    out = tmp_path / "whole.parquet"
    large, small = models
    with pytest.raises(DeltaLossError, match=r"whole\.parquet was made with another large model: remove it, or choose"):
        score_records(records, out, small, small, shard=3)
    with pytest.raises(DeltaLossError, match=r"was made with another settings"):
        score_records(records, out, large, small, shard=4)
    path = tmp_path / "fewer.jsonl"
    path.write_bytes(b"".join(Path(records.source.path).read_bytes().splitlines(keepends=True)[:2]))
    fewer = Records.open(path)
    with pytest.raises(DeltaLossError, match=r"was made with another data"):
        score_records(fewer, out, large, small, shard=3)
    other = tmp_path / "other.parquet"
    score_records(records, other, large, small, shard=3, rank=0, world=2)
    with pytest.raises(DeltaLossError, match=r"00000\.parquet was made with another small model"):
        score_records(records, other, large, large, shard=3)


def test_faulty_settings_and_files(records: Records, models: Models, tmp_path: Path, monkeypatch):
    with pytest.raises(DeltaLossError, match="a shard of 0 rows holds nothing: use at least 1"):
        score_records(records, tmp_path / "x.parquet", *models, shard=0)
    with pytest.raises(DeltaLossError, match=r"no scores at .*x\.parquet: make them with nvila-train score"):
        Scores.read(tmp_path / "x.parquet")
    (tmp_path / "x.parquet").write_text("hello")
    with pytest.raises(DeltaLossError, match=r"x\.parquet is not a Parquet file"):
        Scores.read(tmp_path / "x.parquet")
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"row": [1]}), tmp_path / "x.parquet")
    with pytest.raises(DeltaLossError, match=r"x\.parquet has no column 'large': give a file made by"):
        Scores.read(tmp_path / "x.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DeltaLossError, match=r"pip install 'nvila-train\[prune\]'"):
        Scores.read(tmp_path / "x.parquet")
