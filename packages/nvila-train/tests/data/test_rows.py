"""Whatever stores them, the same records come out; and large files are read where they are asked for."""

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nvila_model import Image
from nvila_train.data import ConversationDataset, DataSource, SourceError
from nvila_train.data.record import as_record
from nvila_train.data.stored import json_files, offsets
from nvila_train.data.stored.json_files import JsonlRows
from nvila_train.data.stored.open_rows import open_rows
from nvila_train.data.stored.shard_names import shard_names
from nvila_train.data.stored.stream import Stream
from nvila_train.data.stored.tar_shards import ShardRows, stream_shards
from PIL import Image as PILImage

LEFT_OPEN = pytest.mark.filterwarnings(
    # webdataset and datasets leave files to the collector when a stream is left in the middle
    "ignore:unclosed file:ResourceWarning",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def write_shards(records: Sequence[dict[str, Any]], pictures: Path, folder: Path, *, each: int = 4) -> None:
    """Shards of ``each`` samples, pictures inside, named only where the record names several."""
    for shard in range(0, len(records), each):
        with tarfile.open(folder / f"part-{shard // each:03}.tar", "w") as tar:
            for number, record in enumerate(records[shard : shard + each], start=shard):
                named = record.get("image", record.get("images", []))
                names = [named] if isinstance(named, str) else named
                kept = {key: value for key, value in record.items() if key not in ("image", "images")}
                if len(names) > 1:
                    kept["images"] = [f"{place}.png" for place in range(len(names))]
                add(tar, f"a/{number:05}.json", json.dumps(kept).encode())
                for place, name in enumerate(names):
                    add(tar, f"a/{number:05}.{place}.png", (pictures / name).read_bytes())


def table(records: Sequence[dict[str, Any]], pictures: Path) -> Any:
    """The records as a table with its pictures inside."""
    datasets = pytest.importorskip("datasets")
    columns: dict[str, list[Any]] = {"conversations": [], "images": []}
    for record in records:
        named = record.get("image", record.get("images", []))
        columns["conversations"].append(record["conversations"])
        columns["images"].append([str(pictures / name) for name in ([named] if isinstance(named, str) else named)])
    features = datasets.Features(
        {
            "conversations": [{"from": datasets.Value("string"), "value": datasets.Value("string")}],
            "images": datasets.Sequence(datasets.Image()),
        }
    )
    return datasets.Dataset.from_dict(columns, features=features)


def told(sample: Any) -> list[Any]:
    """Roles, texts and pixels, which do not depend on where a picture lies."""

    def shown(part: Any) -> Any:
        return np.asarray(part.load()).tolist() if isinstance(part, Image) else part

    return [(message["role"], [shown(part) for part in message["content"]]) for message in sample.messages]


@pytest.fixture
def source(
    request: pytest.FixtureRequest,
    records: list[dict[str, Any]],
    pictures: Path,
    write: Callable[..., Path],
    tmp_path: Path,
) -> DataSource:
    match request.param:
        case "jsonl":
            return DataSource(path=str(write(records)), media=str(pictures))
        case "json":
            (tmp_path / "train.json").write_text(json.dumps(records))
            return DataSource(path=str(tmp_path / "train.json"), media=str(pictures))
        case "parquet" | "parquet-stream":
            table(records, pictures).to_parquet(tmp_path / "train.parquet")
            return DataSource(path=str(tmp_path), streaming=request.param.endswith("stream"))
        case "saved" | "saved-stream":
            table(records, pictures).save_to_disk(tmp_path / "saved")
            return DataSource(path=str(tmp_path / "saved"), streaming=request.param.endswith("stream"))
        case "shards" | "shards-stream":
            write_shards(records, pictures, tmp_path)
            return DataSource(path=str(tmp_path / "part-{000..001}.tar"), streaming=request.param.endswith("stream"))
    raise AssertionError


@LEFT_OPEN
@pytest.mark.parametrize(
    "source",
    ["json", "parquet", "parquet-stream", "saved", "saved-stream", "shards", "shards-stream"],
    indirect=True,
)
def test_every_form_gives_the_same_conversations(
    source: DataSource,
    records: list[dict[str, Any]],
    pictures: Path,
    write: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    plain = ConversationDataset(DataSource(path=str(write(records)), media=str(pictures)), shuffle=False)
    other = ConversationDataset(source, shuffle=False)
    for number in range(len(records) + 2):  # and into the second epoch
        assert told(other[number]) == told(plain[number])
        assert other[number].row == number % len(records) + 1


@pytest.mark.parametrize("ending", ["\n", "", "\n\n \n"])
@pytest.mark.parametrize("chunk", [1, 3, 7, 1 << 20])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_lines_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, chunk: int, newline: str
) -> None:
    """Against the json module on the lines of the whole file; whatever the blank lines and the size of a chunk."""
    monkeypatch.setattr(json_files, "CHUNK", chunk)
    rows = [{"a": 1}, {"b": "é\u2028"}, [], {"c": "x" * 30}]
    text = newline.join(["", json.dumps(rows[0]), "", "", *(json.dumps(row, ensure_ascii=False) for row in rows[1:])])
    path = tmp_path / "rows.jsonl"
    path.write_bytes((text + ending.replace("\n", newline).replace(" ", "")).encode())
    found = JsonlRows(path)
    assert [found[row] for row in range(len(found))] == rows


def test_a_large_file_is_indexed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbered: Callable[..., Path]
) -> None:
    monkeypatch.setattr(offsets, "LARGE", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = numbered(50)
    assert JsonlRows(path)[49]["conversations"][1]["value"] == "train.jsonl 49"
    monkeypatch.setattr(json_files.np, "flatnonzero", None)  # a second pass would fail
    again = JsonlRows(path)
    assert isinstance(again.lines, np.memmap)
    assert again[49]["conversations"][1]["value"] == "train.jsonl 49"
    monkeypatch.undo()
    monkeypatch.setattr(offsets, "LARGE", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path.write_text(path.read_text() + '{"conversations": []}\n')
    assert len(JsonlRows(path)) == 51


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbered: Callable[..., Path]
) -> None:
    monkeypatch.setattr(offsets, "LARGE", 1)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(JsonlRows(numbered(5))) == 5


def test_only_the_asked_row_is_read(tmp_path: Path) -> None:
    """A hole of 40 GB behind the first row: nothing that read it all could pass."""
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"b": 2}\n')
    found = JsonlRows(path)
    with path.open("r+b") as file:
        file.truncate(40 * 2**30)
    assert found[0] == {"a": 1}


@LEFT_OPEN
def test_shards_are_grouped_as_webdataset_groups_them(tmp_path: Path) -> None:
    """Names with folders, dots, capitals and none; long names, which take a header more."""
    webdataset = pytest.importorskip("webdataset")
    path = tmp_path / "x.tar"
    long = "d" * 120
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        folder = tarfile.TarInfo("a")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name in ("a/0.json", "a/0.left.PNG", "README", "a/1.json", "b/1.json", f"{long}/2.json", f"{long}/2.png"):
            add(tar, name, json.dumps({"name": name}).encode() if name.endswith("json") else b"x" * 700)
    ours = ShardRows([path])
    theirs = list(webdataset.WebDataset(str(path), shardshuffle=False))
    assert len(ours) == len(theirs) == 4
    for row, sample in enumerate(theirs):
        expected = json.loads(sample["json"])
        expected |= (
            {"image": [data for ending, data in sample.items() if ending.endswith("png")]} if len(sample) > 4 else {}
        )
        assert ours[row] == expected


@LEFT_OPEN
def test_streams_go_on_where_they_are_asked_to(records: list[dict[str, Any]], pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    write_shards(records, pictures, tmp_path, each=2)
    names = shard_names(str(tmp_path))
    whole = [sample["__key__"] for sample in stream_shards(names, 0)]
    assert whole == [f"a/{row:05}" for row in range(6)]
    stream = Stream(lambda start: stream_shards(names, start))
    for start, count in ((0, 2), (2, 3), (1, 2), (4, 9), (9, 2), (0, 1)):
        assert [sample["__key__"] for sample in stream.window(start, count)] == whole[start : start + count]


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"0.png": b""}, "json: sample 0 has no .json member"),
        ({"0.json": b"{"}, "json: the member of sample 0 is not JSON"),
        ({"0.json": b"[]"}, "json: is list, not an object"),
    ],
)
def test_a_sample_without_a_record(tmp_path: Path, members: dict[str, bytes], said: str) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, data in members.items():
            add(tar, name, data)
    with pytest.raises(ValueError, match=said):
        ConversationDataset(tmp_path / "x.tar")[0]


def test_shard_names_count() -> None:
    assert shard_names("s-{08..10}.tar") == ["s-08.tar", "s-09.tar", "s-10.tar"]
    assert shard_names("https://x/{0..1}/{0..1}.tar")[1:3] == ["https://x/0/1.tar", "https://x/1/0.tar"]


def test_columns_become_records() -> None:
    """Stored files, empty columns, and the old way to keep a list of objects."""
    stored = {
        "images": [{"bytes": b"x", "path": None}, {"bytes": None, "path": "a.png"}],
        "video": None,
        "conversations": {"from": ["human", "gpt"], "value": ["Hi", "Ho"]},
    }
    assert as_record(stored) == {"image": [b"x", "a.png"], "conversations": talk_of("Hi", "Ho")}


def talk_of(*values: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[place % 2], "value": value} for place, value in enumerate(values)]


@pytest.mark.parametrize(
    ("path", "content", "said"),
    [
        ("none.jsonl", None, "no file at .*none.jsonl: give the path of a JSONL file"),
        ("none.json", None, "cannot read .*none.json: No such file"),
        ("none.tar", None, "no shard at .*none.tar"),
        ("none.parquet", None, "no file at .*none.parquet"),
        ("none", None, "none holds no data that is known: give a file that ends in .jsonl"),
        ("bad.json", "{", "bad.json is not JSON .*or name it .jsonl"),
        ("bad.json", "{}", "bad.json holds dict, not an array"),
        ("bad.tar", "x" * 600, "bad.tar is no tar file"),
        ("bad.parquet", "x", "cannot open .*bad.parquet"),
        ("empty.jsonl", "", "empty.jsonl has no rows"),
        ("empty.json", "[]", "empty.json has no rows"),
    ],
)
def test_a_source_that_cannot_be_opened(tmp_path: Path, path: str, content: str | None, said: str) -> None:
    if content is not None:
        (tmp_path / path).write_text(content)
    with pytest.raises(SourceError, match=said):
        open_rows(DataSource(path=str(tmp_path / path)))


def test_a_json_file_is_not_streamed(numbered: Callable[..., Path]) -> None:
    with pytest.raises(SourceError, match="read in place"):
        open_rows(DataSource(path=str(numbered(1)), streaming=True))


@pytest.mark.parametrize(
    ("path", "form"), [("hub:owner/name", "hub"), ("https://x/a.tar", "shards"), ("a.NDJSON", "jsonl")]
)
def test_forms_are_told_from_paths(path: str, form: str) -> None:
    assert DataSource(path=path).form == form


def test_pictures_inside_are_not_decoded_before_they_are_needed(pictures: Path, tmp_path: Path) -> None:
    """A broken picture in a table is the fault of its own sample, found when it is loaded."""
    datasets = pytest.importorskip("datasets")
    rows = {
        "conversations": [talk_of("<image>\nHi", "Ho")] * 2,
        "image": [str(pictures / "cut.png"), str(pictures / "tiny.png")],
    }
    table_ = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    table_.save_to_disk(tmp_path / "saved")
    found = ConversationDataset(tmp_path / "saved", shuffle=False)
    with pytest.raises(ValueError, match="cut short or corrupt"):
        found[0].messages[0]["content"][0].load()
    assert isinstance(found[1].messages[0]["content"][0].load(), PILImage.Image)
