"""JSON files as people have them, damaged or odd."""

import os
from pathlib import Path

import pytest
from nvila_model.inputs import JSONFileError, parse_json

ODD = {
    "empty": (b"", "is not JSON"),
    "cut": (b'{"a": [1, 2', "is not JSON"),
    "latin": ('{"a": "\u00e9"}'.encode("latin-1"), "is not JSON"),
    "lists too deep": (b"[" * 1_000_000, "is not JSON .nested too deeply"),
    "objects too deep": (b'{"a":' * 1_000_000, "is not JSON .nested too deeply"),
    "5000 digits": (b'{"a": ' + b"7" * 5000 + b"}", "is not JSON .Exceeds the limit"),
    "two values": (b"{} {}", "is not JSON"),
    "comment": (b"// a config\n{}", "is not JSON"),
    "NUL": (b'{"a": "\x00"}', "is not JSON"),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_no_json_is_one_sentence(tmp_path: Path, name: str) -> None:
    content, said = ODD[name]
    file = tmp_path / "config.json"
    file.write_bytes(content)
    with pytest.raises(JSONFileError, match=f"config.json {said}") as refusal:
        parse_json(file)
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 400


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_encodings_that_json_knows(tmp_path: Path, encoding: str) -> None:
    """Windows' tools write a byte order mark, or two bytes a character."""
    (tmp_path / "config.json").write_text('{"a": "\u00e9"}', encoding=encoding)
    assert parse_json(tmp_path / "config.json") == {"a": "\u00e9"}


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        parse_json(tmp_path / "absent.json")
    with pytest.raises(JSONFileError, match="is not a file"):
        parse_json(tmp_path)
    with pytest.raises(JSONFileError, match=r"cannot be read \(File name too long"):
        parse_json(tmp_path / ("a" * 300 + ".json"))
    os.mkfifo(tmp_path / "fifo.json")
    with pytest.raises(JSONFileError, match="is not a file"):  # and does not wait for a writer
        parse_json(tmp_path / "fifo.json")
