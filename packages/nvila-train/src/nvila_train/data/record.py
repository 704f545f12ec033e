"""One row as a LLaVA record.

A record is ``{"conversations": [{"from", "value"}, ...], "image" | "video": ...}``. Whatever a source stores (columns
of a table, members of a shard, chat messages) becomes this first, so that there is one definition of a sound sample:
what ``nvila-train check`` accepts is what training takes. ``record_faults`` says what is wrong with one.
"""

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import unquote_to_bytes

MEDIA: Final = ("image", "video")
_PLURAL: Final = {"images": "image", "videos": "video"}
_SENDERS: Final = {"user": "human", "assistant": "gpt"}
"""Other names of those who speak."""


class RecordError(ValueError):
    """A row that is no record at all; ``field`` is the part of it that is at fault."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(field, problem)
        self.field, self.problem = field, problem

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}"


def as_record(row: Any) -> dict[str, Any]:
    """A row of any source as a record.

    ``images`` is ``image``, a stored file or a data URI is its bytes, an empty column is none, ``messages`` of a chat
    are conversations, ``user`` and ``assistant`` are ``human`` and ``gpt``, text may hold the conversations as
    JSON, and half a surrogate pair becomes U+FFFD.

    Raises: RecordError if the row is no object, or names its media twice.
    """
    if not isinstance(row, Mapping):
        raise RecordError("row", f"is {type(row).__name__}, not an object with conversations")
    record: dict[str, Any] = {}
    for name, value in row.items():
        field = _PLURAL.get(name, str(name))
        if value is None or (field in MEDIA and isinstance(value, (str, list)) and not value):
            continue
        if field in record:
            raise RecordError(name, f"the record has {field} too: keep one of them")
        record[field] = _medium(value, field) if field in MEDIA else _sound_text(value)
    if "messages" in record and "conversations" not in record:
        record["conversations"] = record.pop("messages")
    if isinstance(record.get("conversations"), str):
        record["conversations"] = _from_json(record["conversations"])
    turns = record.get("conversations")
    if isinstance(turns, Mapping) and all(isinstance(column, Sequence) for column in turns.values()):
        names = list(turns)  # older releases of datasets keep a list of objects as an object of lists
        turns = [dict(zip(names, turn, strict=False)) for turn in zip(*turns.values(), strict=False)]
    if isinstance(turns, Sequence) and not isinstance(turns, (str, bytes)):
        record["conversations"] = [_turn(turn, record, number) for number, turn in enumerate(turns)]
    return record


def media_of(record: Mapping[str, Any], kind: str) -> list[Any]:
    """The images or videos of a record, as they are named there."""
    value = record.get(kind)
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _from_json(text: str) -> Any:
    """Conversations that are written as text."""
    if not text.lstrip().startswith(("[", "{")):
        return text
    try:
        return _sound_text(json.loads(text))
    except (ValueError, RecursionError):
        raise RecordError("conversations", "is text that is not JSON") from None


def _medium(value: Any, field: str) -> Any:
    """A picture or clip, or a list of them."""
    if isinstance(value, (list, tuple)):
        return [_stored(part, f"{field}[{number}]") for number, part in enumerate(value)]
    return _stored(value, field)


def _stored(value: Any, field: str) -> Any:
    """The file of a picture or clip: its bytes, or the path where it lies."""
    if isinstance(value, Mapping):
        if value.keys() == {"url"}:
            value = value["url"]
        elif value.keys() & {"bytes", "path"} and value.keys() <= {"bytes", "path"}:
            value = value.get("path") if value.get("bytes") is None else value["bytes"]
    if isinstance(value, str) and value[:5].lower() == "data:":
        return _of_uri(value, field)
    return value


def _of_uri(uri: str, field: str) -> bytes:
    """The bytes in a data URI. Raises: RecordError, which does not repeat them."""
    head, comma, body = uri.partition(",")
    if not comma:
        raise RecordError(field, "its data URI has no comma before its data")
    if not head.lower().endswith(";base64"):
        return unquote_to_bytes(body)
    try:
        return base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError):
        raise RecordError(field, f"its data URI of {len(body)} letters is not base64") from None


def _turn(turn: Any, record: dict[str, Any], number: int) -> Any:
    """A turn in LLaVA's form; media among the parts of a chat message go to the record."""
    if not isinstance(turn, Mapping):
        return turn
    turn = dict(turn)
    for chat, llava in (("role", "from"), ("content", "value")):
        if chat in turn and llava not in turn:
            turn[llava] = turn.pop(chat)
    sender = turn.get("from")
    if isinstance(sender, str):
        turn["from"] = _SENDERS.get(sender, sender)
    if isinstance(turn.get("value"), (list, tuple)):
        parts = enumerate(turn["value"])
        turn["value"] = "".join(_part(part, record, f"conversations[{number}].value[{place}]") for place, part in parts)
    return turn


def _part(part: Any, record: dict[str, Any], field: str) -> str:
    """A part of a chat message: its text, or the placeholder of its medium. Raises: RecordError."""
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    for medium in MEDIA:
        name = next(
            (name for name in (medium, f"{medium}_url", "url", "path") if kind in _KINDS[medium] and name in part), None
        )
        if name is not None:
            record[medium] = [*media_of(record, medium), _stored(part[name], field)]
            return f"<{medium}>"
    raise RecordError(field, "is not a text, image or video: write {'type': 'image', 'image': PATH}")


_KINDS: Final = {medium: (medium, f"{medium}_url") for medium in MEDIA}


def _sound_text(value: Any) -> Any:
    """A value whose texts can be encoded, however deep they lie; half a surrogate pair becomes U+FFFD."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, Mapping):
        return {name: _sound_text(inside) for name, inside in value.items()}
    if isinstance(value, (list, tuple)):
        return [_sound_text(inside) for inside in value]
    return value
