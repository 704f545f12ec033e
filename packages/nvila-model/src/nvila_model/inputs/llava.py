"""LLaVA's conversation records, the format of published training data, as messages."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nvila_model.inputs.media import Image, Video
from nvila_model.inputs.messages import Message, MessageError, Part
from nvila_model.inputs.sources import is_address

_ROLES = {"human": "user", "gpt": "assistant", "system": "system"}

# A placeholder takes the newline that sets it apart from the text with it, as the reference's data path does.
_PLACEHOLDER = re.compile(r"<(image|video|vila/video)>\n?|\n<(image|video|vila/video)>$")


def read_llava(record: Mapping[str, Any], *, folder: str | Path | None = None) -> list[Message]:
    """The messages of a record ``{"conversations": [{"from", "value"}, ...], "image" | "video": ...}``.

    Media stand where their placeholders ``<image>`` and ``<video>`` stand in what the human says; those
    without a placeholder come before the first such text. ``no_system_prompt`` gives an empty system message.

    Args:
        record: one record; ``image`` and ``video``, or ``images`` and ``videos``, are a path, an address, or a list of
            them.
        folder: where relative paths begin.

    Raises: MessageError if there are more placeholders than media, or an unknown sender.
    """
    media = {
        kind: [made(_located(source, folder)) for name in (kind, f"{kind}s") for source in _listed(record.get(name))]
        for kind, made in (("image", Image), ("video", Video))
    }
    given = {kind: len(parts) for kind, parts in media.items()}
    messages: list[Message] = []
    if record.get("no_system_prompt"):
        messages.append({"role": "system", "content": ""})
    first_question: list[Part] | None = None
    for entry in record["conversations"]:
        if entry["from"] not in _ROLES:
            raise MessageError(f"sender {entry['from']!r} is not one of {', '.join(_ROLES)}")
        content: list[Part] = [entry["value"]]
        if entry["from"] == "human":
            content = _placed(entry["value"], media, given)
            first_question = content if first_question is None else first_question
        messages.append({"role": _ROLES[entry["from"]], "content": content})
    unplaced = [*media["video"], *media["image"]]
    if unplaced and first_question is None:
        raise MessageError(f"{len(unplaced)} media but nothing that a human says: where do they belong?")
    if first_question is not None:
        first_question[:0] = unplaced
    return messages


def _placed(text: str, media: Mapping[str, list[Any]], given: Mapping[str, int]) -> list[Part]:
    """Cut a text at its placeholders and put the next medium of each kind there."""
    parts: list[Part] = []
    end = 0
    for match in _PLACEHOLDER.finditer(text):
        kind = "image" if "image" in match.group() else "video"
        if not media[kind]:
            raise MessageError(f"more <{kind}> placeholders than the {given[kind]} {kind}s of the record")
        parts += [text[end : match.start()], media[kind].pop(0)]
        end = match.end()
    return [part for part in [*parts, text[end:]] if part != ""]


def _listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _located(source: Any, folder: str | Path | None) -> Any:
    if folder is None or is_address(source) or not isinstance(source, (str, Path)):
        return source
    return Path(folder) / source
