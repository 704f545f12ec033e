"""One row as a LLaVA record, and what is wrong with it.

A record is ``{"conversations": [{"from", "value"}, ...], "image" | "video": ...}``. Whatever a source stores (columns
of a table, members of a shard) becomes this first, so that there is one definition of a sound sample: what
``nvila-train check`` accepts is what training takes.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nvila_model.inputs.sources import is_address

SENDERS: Final = ("human", "gpt", "system")
"""Who may speak in a record."""

_PLACEHOLDERS: Final = {"image": re.compile(r"<image>"), "video": re.compile(r"<(?:vila/)?video>")}
_PLURAL: Final = {"images": "image", "videos": "video"}


class RecordError(ValueError):
    """A row that is no record at all; ``field`` is the part of it that is at fault."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(field, problem)
        self.field, self.problem = field, problem

    def __str__(self) -> str:
        return f"{self.field}: {self.problem}"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What is wrong with a record.

    Attributes:
        field: the part of it, such as ``conversations[1].value``.
        problem: half a sentence.
    """

    field: str
    problem: str


def as_record(row: Any) -> dict[str, Any]:
    """A row of any source as a record: ``images`` is ``image``, a stored file is its bytes, an empty column is none.

    Raises: RecordError if the row is no object, or names its media twice.
    """
    if not isinstance(row, Mapping):
        raise RecordError("row", f"is {type(row).__name__}, not an object with conversations")
    record: dict[str, Any] = {}
    for name, value in row.items():
        field = _PLURAL.get(name, str(name))
        if value is None or (field in _PLACEHOLDERS and isinstance(value, (str, list)) and not value):
            continue
        if field in record:
            raise RecordError(name, f"the record has {field} too: keep one of them")
        record[field] = [_stored(part) for part in value] if isinstance(value, (list, tuple)) else _stored(value)
    turns = record.get("conversations")
    if isinstance(turns, Mapping) and all(isinstance(column, Sequence) for column in turns.values()):
        names = list(turns)  # older releases of datasets keep a list of objects as an object of lists
        record["conversations"] = [dict(zip(names, turn, strict=False)) for turn in zip(*turns.values(), strict=False)]
    return record


def _stored(value: Any) -> Any:
    """The file in a column of images: its bytes, or the path where it lies."""
    if isinstance(value, Mapping) and value.keys() == {"bytes", "path"}:
        return value["path"] if value["bytes"] is None else value["bytes"]
    return value


def media_of(record: Mapping[str, Any], kind: str) -> list[Any]:
    """The images or videos of a record, as they are named there."""
    value = record.get(kind)
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def faults(record: Mapping[str, Any], *, folder: Path | None) -> Iterator[Fault]:
    """Everything that is wrong with a record, without opening its media.

    Args:
        folder: where relative paths of media begin.
    """
    turns = record.get("conversations")
    if not isinstance(turns, list) or not turns:
        yield Fault(field="conversations", problem="is missing or empty: a record needs a question and an answer")
        return
    sound: list[Mapping[str, str]] = []
    for number, turn in enumerate(turns):
        found = list(_turn_faults(turn, f"conversations[{number}]"))
        yield from found
        if not found or found[0].field.endswith(".value"):
            sound.append(turn)
    senders = [turn["from"] for turn in sound]
    if len(sound) == len(turns):
        if "human" not in senders:
            yield Fault(field="conversations", problem="no turn is from human: there is no question")
        if "gpt" not in senders:
            yield Fault(field="conversations", problem="no turn is from gpt: there is no answer to learn")
    asked = "\n".join(str(turn["value"]) for turn in sound if turn["from"] == "human")
    for kind in _PLACEHOLDERS:
        yield from _media_faults(record, kind, asked, folder)


def _turn_faults(turn: Any, field: str) -> Iterator[Fault]:
    if not isinstance(turn, Mapping) or not {"from", "value"} <= turn.keys():
        yield Fault(field=field, problem="is not an object with from and value")
        return
    if turn["from"] not in SENDERS:
        yield Fault(field=f"{field}.from", problem=f"{turn['from']!r} is not one of {', '.join(SENDERS)}")
        return
    if not isinstance(turn["value"], str):
        yield Fault(field=f"{field}.value", problem=f"is {type(turn['value']).__name__}, not text")
    elif turn["from"] == "gpt" and not turn["value"].strip():
        yield Fault(field=f"{field}.value", problem="the answer is empty")


def _media_faults(record: Mapping[str, Any], kind: str, asked: str, folder: Path | None) -> Iterator[Fault]:
    media = media_of(record, kind)
    placed = len(_PLACEHOLDERS[kind].findall(asked))
    # Media without any placeholder go before the first question, as in LLaVA.
    if placed and placed != len(media):
        yield Fault(
            field=kind, problem=f"{placed} <{kind}> in what human says, but {len(media)} {kind}s: give one for each"
        )
    for number, source in enumerate(media):
        field = f"{kind}[{number}]" if isinstance(record[kind], (list, tuple)) else kind
        if not isinstance(source, (str, Path)) or is_address(source):
            continue
        path = Path(source) if folder is None else folder / source
        if not path.exists():
            yield Fault(field=field, problem=f"no file at {path}")
