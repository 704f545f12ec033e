"""LLaVA files as rows, and what is said of faulty ones."""

import json
from pathlib import Path

import pytest
from nvila_train.delta_loss.errors import DeltaLossError
from nvila_train.delta_loss.records import Records

GOOD = {"conversations": [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "nö"}]}


def test_an_array_and_lines_are_the_same_rows(tmp_path: Path):
    (tmp_path / "a.json").write_text(json.dumps([GOOD, GOOD | {"id": 7}]))
    (tmp_path / "b.jsonl").write_bytes(b"\n" + json.dumps(GOOD, ensure_ascii=False).encode() + b"\r\n\n")
    array, lines = Records.read(tmp_path / "a.json"), Records.read(tmp_path / "b.jsonl")
    assert (len(array), len(lines)) == (2, 1)
    assert array.lines[0] == lines.lines[0]
    assert array[1]["id"] == 7
    assert array.digest != lines.digest
    assert (array.source(array[0]), array.source({"source": "vqa"})) == ("a", "vqa")
    assert array.conversation(0)[1] == {"role": "assistant", "content": ["nö"]}


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.json", "{", r"a\.json is not JSON \(.*\): name it \.jsonl"),
        ("a.json", "{}", r"a\.json holds dict, not an array of records"),
        ("a.json", "[]", r"a\.json holds no records"),
        ("a.jsonl", "\n\n", r"a\.jsonl holds no records"),
        ("a.jsonl", "{", r"row 0 of .*a\.jsonl is not JSON"),
        ("a.jsonl", "[]", r"row 0 of .*a\.jsonl is list, not an object"),
        ("a.jsonl", "{}", r"row 0 of .*a\.jsonl: conversations: is missing or empty"),
        (
            "a.jsonl",
            '{"conversations": [{"from": "gpt"}]}',
            r"a\.jsonl: conversations\[0\]: is not an object with from and value",
        ),
        ("a.jsonl", '{"image": "a", "images": "b"}', r"row 0 of .*a\.jsonl: images: the record has image too"),
        (
            "a.jsonl",
            '{"conversations": [{"from": "cat", "value": ""}]}',
            r"a\.jsonl: conversations\[0\]\.from: 'cat' is not one of",
        ),
    ],
)
def test_a_faulty_file_is_refused(tmp_path: Path, name: str, text: str, said: str):
    (tmp_path / name).write_text(text)
    with pytest.raises(DeltaLossError, match=said):
        Records.read(tmp_path / name).conversation(0)


def test_a_missing_file(tmp_path: Path):
    with pytest.raises(DeltaLossError, match=r"cannot read .*none\.json: No such file"):
        Records.read(tmp_path / "none.json")
