"""JSON files as people have them, damaged or odd."""

import os
from pathlib import Path

import pytest
from nvila_model.inputs.json_file import JSONFileError, parse_json

ODD = {
    "empty": (b"", "is not JSON"),
    "cut": (b'{"a": [1, 2', "is not JSON"),
    "latin": ('{"a": "\u00e9"}'.encode("latin-1"), "is not JSON"),
    "utf-16": ('{"a": 1}'.encode("utf-16"), "is not JSON"),
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


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert parse_json(tmp_path / "config.json") == {"a": 1}


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        parse_json(tmp_path / "absent.json")
    with pytest.raises(JSONFileError, match="is not a file"):
        parse_json(tmp_path)
    os.mkfifo(tmp_path / "fifo.json")
    with pytest.raises(JSONFileError, match="is not a file"):  # and does not wait for a writer
        parse_json(tmp_path / "fifo.json")
