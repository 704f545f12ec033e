"""Sources as records, what tells them apart, and what is said of those that cannot be scored."""

import hashlib
import json
from pathlib import Path

import pytest
from nvila_train.data import DataSource, SampleError, SourceError
from nvila_train.delta_loss.choices import DeltaLossError
from nvila_train.delta_loss.storage.records import Records

GOOD = {"conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "nö"}]}


def test_an_array_and_lines_are_the_same_rows(tmp_path: Path):
    (tmp_path / "a.json").write_text(json.dumps([GOOD, GOOD | {"id": 7}]))
    (tmp_path / "one.json").write_text(json.dumps([GOOD]))
    (tmp_path / "b.jsonl").write_bytes(b"\n" + json.dumps(GOOD, ensure_ascii=False).encode() + b"\r\n\n")
    array, one, lines = (Records.open(tmp_path / name) for name in ("a.json", "one.json", "b.jsonl"))
    assert (len(array), len(lines)) == (2, 1)
    assert array.sample(1).record["id"] == 7
    line = json.dumps(GOOD, ensure_ascii=False).encode() + b"\n"
    assert array.digest != lines.digest == one.digest == hashlib.sha256(line).hexdigest()
    assert (array.source_of(array.sample(0).record), array.source_of({"source": "vqa"})) == ("a", "vqa")
    assert array.sample(0).messages[1] == {"role": "assistant", "content": ["nö"]}


@pytest.mark.parametrize(
    ("path", "name"),
    [("v1.5/mix.jsonl", "mix"), ("v1.5", "v1.5"), ("https://host/x.tar", "x.tar"), ("hub:o/n-1.5", "n-1.5")],
)
def test_what_a_source_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, name: str):
    monkeypatch.chdir(tmp_path)
    Path("v1.5").mkdir()
    records = Records(source=DataSource(path=path), rows=[], storage=None)
    assert records.source_of({}) == name
    named = records.source.model_copy(update={"name": "mine.jsonl"})
    assert Records(source=named, rows=[], storage=None).source_of({}) == "mine.jsonl"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", r"^a\.jsonl row 1: row: is not JSON"),
        ("[]", r"^a\.jsonl row 1: row: is list, not an object"),
        ("{}", r"^a\.jsonl row 1: conversations: is missing or empty"),
        ('{"image": "a", "images": "b"}', r"^a\.jsonl row 1: images: the record has image too"),
    ],
)
def test_a_faulty_row_is_named(tmp_path: Path, text: str, said: str):
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(SampleError, match=said):
        Records.open(tmp_path / "a.jsonl").sample(0)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (
            DataSource(path="hub:owner/name", streaming=True),
            "^hub:owner/name comes as a stream, and scores belong to rows that can be read again alone: leave out "
            "streaming$",
        ),
        (
            DataSource(path="https://host/x-{0..3}.tar"),
            r"^https://host/x-\{0\.\.3\}\.tar comes as a stream, .*: download it first$",
        ),
    ],
)
def test_a_stream_is_refused(source: DataSource, said: str):
    with pytest.raises(DeltaLossError, match=said):
        Records.open(source)


def test_a_missing_file(tmp_path: Path):
    with pytest.raises(SourceError, match=r"cannot read .*none\.json: No such file"):
        Records.open(tmp_path / "none.json")
