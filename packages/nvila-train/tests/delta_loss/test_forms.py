"""However the same conversations are stored, they get the same scores, and the same of them stay."""

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nvila_model import NVILA, Image, Video
from nvila_model.inputs import Conversation
from nvila_train import prune
from nvila_train.cli.app import app
from nvila_train.cli.prune import scored_records
from nvila_train.data import DataSource
from nvila_train.data.record import as_record
from nvila_train.delta_loss.cluster import cluster
from nvila_train.delta_loss.forward.windows import windows
from nvila_train.delta_loss.score_records import score_records
from nvila_train.delta_loss.score_table import Scores
from nvila_train.delta_loss.storage.records import Records
from nvila_train.delta_loss.subset import write_subset
from typer.testing import CliRunner

FORMS = ("json", "parquet", "parquets", "saved", "hub", "tar", "tars")
Models = tuple[NVILA, NVILA]


def media_of(row: dict[str, Any], kind: str) -> list[str]:
    named = row.get(kind, [])
    return [named] if isinstance(named, str) else named


def write_table(rows: Sequence[dict[str, Any]], media: Path) -> Any:
    """A table with its media inside, decodable for those who open it with ``datasets``."""
    datasets = pytest.importorskip("datasets")

    def stored(path: Path) -> dict[str, Any]:
        return {"bytes": path.read_bytes(), "path": None}

    text = datasets.Value("string")
    features = {
        "conversations": [{"from": text, "value": text}],
        "images": datasets.Sequence(datasets.Image()),
        "video": datasets.Value("binary"),
        "source": text,
    }
    columns = {
        "conversations": [row["conversations"] for row in rows],
        "images": [[stored(media / name) for name in media_of(row, "image")] for row in rows],
        "video": [(media / row["video"]).read_bytes() if "video" in row else None for row in rows],
        "source": [row.get("source") for row in rows],
    }
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def write_tar(path: Path, rows: Sequence[dict[str, Any]], media: Path, *, first: int = 0) -> None:
    """A shard with its media inside, named in the record where there are several; a file of no sample between."""
    with tarfile.open(path, "w") as tar:

        def add(name: str, data: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = len(data), 1_000_000 + len(data), 0o640
            tar.addfile(info, io.BytesIO(data))

        for number, row in enumerate(rows, first):
            pictures = media_of(row, "image")
            kept = {name: value for name, value in row.items() if name not in ("image", "video")}
            if len(pictures) > 1:
                kept["image"] = [f"{place}.png" for place in range(len(pictures))]
            add(f"x/{number:04}.json", json.dumps(kept).encode())
            for place, name in enumerate(pictures):
                add(f"x/{number:04}.{place}.png", (media / name).read_bytes())
            if "video" in row:
                add(f"x/{number:04}.mp4", (media / row["video"]).read_bytes())
            add("README", b"of no sample")


@pytest.fixture
def store(
    records: Records, rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Records]:
    """The rows of ``records`` in another form, under a name that gives the same source."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def stored(form: str) -> Records:
        folder = tmp_path / form
        folder.mkdir()
        mix = folder / "mix"
        match form:
            case "json":
                (folder / "mix.json").write_text(json.dumps(rows))
                return Records.open(DataSource(path=str(folder / "mix.json"), media=str(tmp_path)))
            case "parquet":
                write_table(rows, tmp_path).to_parquet(folder / "mix.parquet")
                return Records.open(folder / "mix.parquet")
            case "parquets" | "hub":
                mix.mkdir()
                for place, some in enumerate((rows[:3], rows[3:])):
                    write_table(some, tmp_path).to_parquet(mix / f"{place}.parquet")
                return Records.open(f"hub:{mix}" if form == "hub" else mix)
            case "saved":
                write_table(rows, tmp_path).save_to_disk(mix)
                return Records.open(mix)
            case "tar":
                write_tar(folder / "mix.tar", rows, tmp_path)
                return Records.open(folder / "mix.tar")
            case "tars":
                mix.mkdir()
                for place, some in enumerate((rows[:3], rows[3:])):
                    write_tar(mix / f"{place}.tar", some, tmp_path, first=3 * place)
                return Records.open(mix)
        raise AssertionError

    return stored


def told(messages: Conversation) -> list[Any]:
    """Roles, texts and pixels, which do not depend on where media lie."""

    def shown(part: Any) -> Any:
        match part:
            case Image():
                return np.asarray(part.load()).tolist()
            case Video():
                return [np.asarray(frame).tolist() for frame in part.load(num_frames=3).frames]
            case _:
                return part

    return [(message["role"], [shown(part) for part in message["content"]]) for message in messages]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_same_scores_and_the_same_stay(
    records: Records, models: Models, store: Callable[[str], Records], tmp_path: Path, form: str
) -> None:
    """Scores from two processes, the second first; then the subset is read back as any data is."""
    other = store(form)
    for rank in (1, 0):
        score_records(other, tmp_path / "other.parquet", *models, shard=3, rank=rank, world=2)
    score_records(records, tmp_path / "lines.parquet", *models, shard=3)
    scores, expected = Scores.read(tmp_path / "other.parquet"), Scores.read(tmp_path / "lines.parquet")
    assert scores.source == expected.source
    assert scores.large.tolist() == expected.large.tolist()
    assert scores.small.tolist() == expected.small.tolist()
    kept = prune(scores, keep=0.5).kept
    assert kept.tolist() == prune(expected, keep=0.5).kept.tolist()
    stay = scores.row[kept].tolist()
    out = tmp_path / f"subset{other.storage.endings[0]}"
    write_subset(other, stay, out)
    subset = Records.open(DataSource(path=str(out), media=str(tmp_path)))
    assert [as_record(subset.rows[place]) for place in range(len(subset))] == [
        as_record(other.rows[row]) for row in stay
    ]
    for place, row in enumerate(stay):
        assert told(subset.sample(place).messages) == told(records.sample(row).messages)


@pytest.mark.parametrize("form", ["saved", "hub", "tar"])
def test_the_commands_take_every_form(
    models: Models, store: Callable[[str], Records], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    loaded = dict(zip(("large", "small"), models, strict=True)) | {"nano": models[0]}
    monkeypatch.setattr(NVILA, "from_pretrained", lambda name, **_: loaded[name])
    monkeypatch.chdir(tmp_path)
    other = store(form)
    run = CliRunner().invoke
    data = other.source.path if form == "hub" else str(Path(other.source.path).relative_to(tmp_path))
    assert run(app, ["score", data, "--large", "large", "--small", "small"]).exit_code == 0
    monkeypatch.chdir("/")  # scores know where their data lie
    scores = str(tmp_path / "scores.parquet")
    out = tmp_path / f"kept{other.storage.endings[0]}"
    result = run(app, ["prune", scores, "--keep", "0.5", "--method", "cluster", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert len(Records.open(out)) == 4
    page = (tmp_path / "kept.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 1 + 2 + 4 + 1  # those of each record, four frames of the clip
    if form != "tar":
        result = run(app, ["prune", scores, "--keep", "0.5", "--out", scores])
        assert str(result.exception) == f"{scores} holds the scores: choose another --out"


def test_tables_may_be_packed_anew_and_splits_are_known(
    models: Models, rows: list[dict[str, Any]], store: Callable[[str], Records], tmp_path: Path
) -> None:
    datasets = pytest.importorskip("datasets")
    out = tmp_path / "scores.parquet"
    score_records(store("parquets"), out, *models)
    moved = store("saved").source.path
    assert scored_records(Scores.read(out), moved, None).source.path == moved
    whole = write_table(rows, tmp_path)
    datasets.DatasetDict({"train": whole.select([0]), "held": whole.select([2, 1])}).save_to_disk(tmp_path / "both")
    held = Records.open(DataSource(path=str(tmp_path / "both"), split="held"))
    score_records(held, tmp_path / "held.parquet", *models)
    again = scored_records(Scores.read(tmp_path / "held.parquet"), None, None)
    assert (len(again), again.source.split) == (2, "held")


@pytest.mark.parametrize("form", ["parquet", "tar"])
def test_pictures_inside_are_kept_once_and_looked_at(
    records: Records, models: Models, store: Callable[[str], Records], form: str
) -> None:
    """As those that are named by paths: rows 1 and 3 show the same one."""
    other = store(form)
    talks = [other.sample(row).messages for row in range(len(other))]
    (whole,) = windows(talks, [models[0].needed_processor()] * 2, limit=2**30)
    assert whole[1].inputs[0].images[0] is whole[3].inputs[0].images[0]
    assert whole[1].images == whole[3].images[:1] != whole[3].images[1:]
    assert sum(map(len, whole[4].videos)) == 32  # a hash, not the file
    named = [records.sample(row).messages for row in range(len(records))]
    assert cluster(talks, models[0], count=2).tolist() == cluster(named, models[0], count=2).tolist()
