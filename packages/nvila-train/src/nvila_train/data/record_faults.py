"""What is wrong with a record, named by its fields."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from nvila_model.inputs import is_address

from nvila_train.data.record import MEDIA, media_of

SENDERS: Final = ("human", "gpt", "system")
"""Who may speak in a record."""

_PLACEHOLDERS: Final = {"image": re.compile(r"<image>"), "video": re.compile(r"<(?:vila/)?video>")}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What is wrong with a record.

    Attributes:
        field: the part of it, such as ``conversations[1].value``.
        problem: half a sentence.
    """

    field: str
    problem: str


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
    if len(sound) == len(turns):
        yield from _order_faults(sound, media=any(media_of(record, kind) for kind in MEDIA))
    questions = "\n".join(str(turn["value"]) for turn in sound if turn["from"] == "human")
    for kind in MEDIA:
        yield from _media_faults(record, kind, questions, folder)


def _turn_faults(turn: Any, field: str) -> Iterator[Fault]:
    if not isinstance(turn, Mapping) or not {"from", "value"} <= turn.keys():
        yield Fault(field=field, problem="is not an object with from and value")
        return
    if turn["from"] not in SENDERS:
        yield Fault(field=f"{field}.from", problem=f"{turn['from']!r:.60} is not one of {', '.join(SENDERS)}")
        return
    value = turn["value"]
    if not isinstance(value, str):
        yield Fault(field=f"{field}.value", problem=f"is {type(value).__name__}, not text")
    elif turn["from"] == "gpt" and not value.strip():
        yield Fault(field=f"{field}.value", problem="the answer is empty")
    elif turn["from"] != "human":
        for kind, pattern in _PLACEHOLDERS.items():
            if found := pattern.search(value):
                who = "an answer" if turn["from"] == "gpt" else "the system turn"
                yield Fault(
                    field=f"{field}.value", problem=f"{found[0]} stands in {who}: {kind}s belong to what human says"
                )


def _order_faults(turns: list[Mapping[str, str]], *, media: bool) -> Iterator[Fault]:
    """What is wrong with the turns together, each sound by itself."""
    senders = [turn["from"] for turn in turns]
    if "human" not in senders:
        yield Fault(field="conversations", problem="no turn is from human: there is no question")
    if "gpt" not in senders:
        yield Fault(field="conversations", problem="no turn is from gpt: there is no answer to learn")
    if "human" not in senders or "gpt" not in senders:
        return
    first = senders.index("human")
    if senders.index("gpt") < first:
        place = senders.index("gpt")
        yield Fault(field=f"conversations[{place}]", problem="the answer stands before any question")
    for number, turn in enumerate(turns):
        shown = media and number == first  # media without a placeholder go there
        if turn["from"] == "human" and not turn["value"].strip() and not shown:
            yield Fault(field=f"conversations[{number}].value", problem="the question is empty")


def _media_faults(record: Mapping[str, Any], kind: str, questions: str, folder: Path | None) -> Iterator[Fault]:
    media = media_of(record, kind)
    placed = len(_PLACEHOLDERS[kind].findall(questions))
    # Media without any placeholder go before the first question, as in LLaVA.
    if placed and placed != len(media):
        yield Fault(
            field=kind, problem=f"{placed} <{kind}> in what human says, but {len(media)} {kind}s: give one for each"
        )
    for number, source in enumerate(media):
        field = f"{kind}[{number}]" if isinstance(record[kind], (list, tuple)) else kind
        problem = _source_fault(source, folder)
        if problem:
            yield Fault(field=field, problem=problem)


def _source_fault(source: Any, folder: Path | None) -> str:
    """What is wrong with where a picture or clip lies; nothing if it may be opened."""
    if source is None:
        return "is missing: give a path"
    if isinstance(source, (bytes, bytearray)):
        return "" if source else "is empty: its file has no bytes"
    if not isinstance(source, (str, Path)):
        return f"is {type(source).__name__}, not a path or the bytes of a file"
    if is_address(source):
        return ""
    path = Path(source) if folder is None else folder / source
    try:
        there = path.exists()
    except (OSError, ValueError):  # names that no file can have
        there = False
    if there:
        return ""
    shown = str(path).replace("\0", "\\0")
    remedy = ": write forward slashes" if "\\" in str(source) else ""
    return f"no file at {shown if len(shown) < 300 else shown[:297] + '...'}{remedy}"
