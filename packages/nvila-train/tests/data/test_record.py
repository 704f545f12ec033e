"""Each fault of a record is named with its field."""

from pathlib import Path
from typing import Any

import pytest
from nvila_train.data.record import RecordError, as_record
from nvila_train.data.record_faults import faults

HUMAN = {"from": "human", "value": "Hi"}
GPT = {"from": "gpt", "value": "Ho"}


def found(record: dict[str, Any], folder: Path | None = None) -> list[str]:
    return [f"{fault.field}: {fault.problem}" for fault in faults(as_record(record), folder=folder)]


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        (None, ["conversations: is missing or empty"]),
        ([], ["conversations: is missing or empty"]),
        ("Hi", ["conversations: is missing or empty"]),
        ([HUMAN], ["conversations: no turn is from gpt"]),
        ([GPT], ["conversations: no turn is from human"]),
        ([HUMAN, {"from": "bot", "value": "Ho"}], ["conversations[1].from: 'bot' is not one of human, gpt, system"]),
        ([HUMAN, {"from": "gpt", "value": " \n"}], ["conversations[1].value: the answer is empty"]),
        ([HUMAN, GPT, HUMAN, {"from": "gpt", "value": 3}], ["conversations[3].value: is int, not text"]),
        ([HUMAN, "Ho"], ["conversations[1]: is not an object with from and value"]),
        ([{"from": "gpt"}, {"value": "x"}], ["conversations[0]: is not an object", "conversations[1]: is not an"]),
        ([HUMAN, GPT], []),
        ([{"from": "system", "value": ""}, HUMAN, GPT, HUMAN, GPT], []),
        ([HUMAN, GPT, HUMAN], []),
    ],
)
def test_faults_of_turns(turns: Any, said: list[str]) -> None:
    told = found({"conversations": turns})
    assert len(told) == len(said)
    assert all(line.startswith(start) for line, start in zip(told, said, strict=True)), told


@pytest.mark.parametrize(
    ("asked", "media", "said"),
    [
        ("<image>\nHi", {"image": "tiny.png"}, []),
        ("Hi", {"image": ["tiny.png", "wide.png"]}, []),
        ("<image><image>", {"images": ["tiny.png", "wide.png"]}, []),
        ("<image>", {}, ["image: 1 <image> in what human says, but 0 images: give one for each"]),
        ("<image>", {"image": ["tiny.png", "wide.png"]}, ["image: 1 <image> in what human says, but 2 images: give"]),
        ("<video> <vila/video>", {"video": "tiny.png"}, ["video: 2 <video> in what human says, but 1 videos: give"]),
        ("<image>", {"image": "none.png"}, ["image: no file at {folder}/none.png"]),
        ("Hi", {"image": ["tiny.png", "a/none.png"]}, ["image[1]: no file at {folder}/a/none.png"]),
        ("Hi", {"image": "https://somewhere/none.png"}, []),
        ("Hi", {"image": [b"bytes"]}, []),
        ("Hi", {"image": None, "video": "", "images": []}, []),
    ],
)
def test_faults_of_media(asked: str, media: dict[str, Any], said: list[str], pictures: Path) -> None:
    record = {"conversations": [{"from": "human", "value": asked}, GPT], **media}
    told = found(record, pictures)
    assert len(told) == len(said)
    assert all(line.startswith(start.format(folder=pictures)) for line, start in zip(told, said, strict=True)), told


@pytest.mark.parametrize("token", ["<image>", "<video>", "<vila/video>"])
def test_media_tokens_belong_to_what_human_says(token: str) -> None:
    answer = {"from": "gpt", "value": f"Write {token}."}
    assert found({"conversations": [HUMAN, answer]})[0].startswith(f"conversations[1].value: {token} stands in an")
    told = found({"conversations": [{"from": "system", "value": token}, HUMAN, GPT]})
    assert told[0].startswith(f"conversations[0].value: {token} stands in the system turn")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ([1], "row: is list, not an object"),
        ({"image": "a", "images": ["b"]}, "images: the record has image too: keep one"),
    ],
)
def test_what_is_no_record(row: Any, said: str) -> None:
    with pytest.raises(RecordError, match=said):
        as_record(row)
