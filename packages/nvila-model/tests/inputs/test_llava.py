"""LLaVA's records become messages with media where their placeholders stand."""

from pathlib import Path
from typing import Any

import pytest
from nvila_model.inputs.llava import read_llava
from nvila_model.inputs.media import Image, Video
from nvila_model.inputs.messages import MessageError


def record(*values: str, **media: Any) -> dict[str, Any]:
    senders = ("human", "gpt")
    turns = [{"from": senders[place % 2], "value": value} for place, value in enumerate(values)]
    return {"id": "a", "conversations": turns, **media}


def shown(messages: list[Any]) -> list[tuple[str, list[str]]]:
    """Roles, texts, and the sources of media in angle brackets."""

    def named(part: Any) -> str:
        return f"<{part.source}>" if isinstance(part, Image | Video) else part

    return [(message["role"], [named(part) for part in message["content"]]) for message in messages]


@pytest.mark.parametrize(
    ("value", "media", "parts"),
    [
        ("<image>\nWhat?", {"image": "a"}, ["<a>", "What?"]),
        ("What?\n<image>", {"image": "a"}, ["What?", "<a>"]),
        ("Is <image> a cat?", {"image": "a"}, ["Is ", "<a>", " a cat?"]),
        ("<image>\n<image>\nCompare.", {"image": ["a", "b"]}, ["<a>", "<b>", "Compare."]),
        ("<image>\n<image>\nCompare.", {"images": ["a", "b"]}, ["<a>", "<b>", "Compare."]),
        ("<image> or <image>?", {"image": ["a", "b"]}, ["<a>", " or ", "<b>", "?"]),
        ("<video>\nWhat?", {"video": "a"}, ["<a>", "What?"]),
        ("<vila/video>What?", {"video": ["a"]}, ["<a>", "What?"]),
        ("<video>\n<image>\nBoth?", {"image": "a", "video": "b"}, ["<b>", "<a>", "Both?"]),
        ("What?", {"image": "a", "video": "b"}, ["<b>", "<a>", "What?"]),
        ("<image>\nWhat?", {"image": ["a", "b"]}, ["<b>", "<a>", "What?"]),
    ],
)
def test_media_stand_where_their_placeholders_stand(value: str, media: dict[str, Any], parts: list[str]) -> None:
    messages = read_llava(record(value, "A cat.", **media))
    assert shown(messages) == [("user", parts), ("assistant", ["A cat."])]


def test_later_questions_can_have_media() -> None:
    messages = read_llava(record("Hi", "Hello", "<image>\nWhat?", "A cat.", image="a"))
    assert shown(messages)[2] == ("user", ["<a>", "What?"])


def test_answers_are_left_as_they_are() -> None:
    assert shown(read_llava(record("Hi", "<image>")))[1] == ("assistant", ["<image>"])


def test_system_prompts() -> None:
    assert read_llava(record("Hi", "Ho", no_system_prompt=True))[0] == {"role": "system", "content": ""}
    spoken = {"conversations": [{"from": "system", "value": "Be terse."}, {"from": "human", "value": "Hi"}]}
    assert shown(read_llava(spoken))[0] == ("system", ["Be terse."])


def test_paths_begin_at_the_folder() -> None:
    messages = read_llava(record("Hi", "Ho", image=["a.png", "/b.png", "https://c/d.png"]), folder="root")
    sources = [part.source for part in messages[0]["content"] if isinstance(part, Image)]
    assert sources == [Path("root/a.png"), Path("/b.png"), "https://c/d.png"]


@pytest.mark.parametrize(
    ("instance", "message"),
    [
        (record("<image>\n<image>\nHi", "Ho", image="a"), "more <image> placeholders than the 1 images of the record"),
        (record("<video>\nHi", "Ho", image="a"), "more <video> placeholders than the 0 videos"),
        ({"conversations": [{"from": "user", "value": "Hi"}]}, "sender 'user' is not one of human, gpt, system"),
        ({"conversations": [{"from": "gpt", "value": "Hi"}], "image": "a"}, "1 media but nothing that a human says"),
    ],
)
def test_a_record_that_does_not_add_up_is_refused(instance: dict[str, Any], message: str) -> None:
    with pytest.raises(MessageError, match=message):
        read_llava(instance)
