"""A run on one page: what it learnt, how fast, and what it answers now.

``report.html`` holds everything it shows (curves as SVG, pictures as data), so it can be sent around and opened from a
disk. ``log.csv`` beside it has the lines of all stages in one table.
"""

import base64
import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Final

from nvila_train.curves import curve
from nvila_train.trainer import log

NOT_CURVES: Final = ("stage", "step", "seconds")

TITLES: Final = {
    "loss": "loss",
    "rate": "learning rate (largest of all parts)",
    "tokens_per_second": "tokens a second",
    "steps_per_second": "steps a second",
    "mfu": "share of the device's peak",
    "memory": "peak memory, GiB",
}

STYLE: Final = (
    "body{font:15px/1.5 sans-serif;max-width:1320px;margin:2em auto;padding:0 1em;color:#222}"
    "svg{margin:0 1em 1em 0}table{border-collapse:collapse}td,th{padding:.2em .8em .2em 0;text-align:left}"
    "figure{display:inline-block;vertical-align:top;width:300px;margin:0 1em 1.5em 0}"
    "figure img{max-width:300px;max-height:300px;border:1px solid #ddd}.right{color:#177a2f}.wrong{color:#b3261e}"
)


class ReportError(ValueError):
    """A folder that is no run."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A question that the model was asked.

    Attributes:
        png: the picture, or the first frame of a clip.
    """

    kind: str
    question: str
    expected: str
    answer: str
    png: bytes

    @property
    def right(self) -> bool:
        return self.answer.strip() == self.expected


def write_report(run: Path, shown: Sequence[Shown] = ()) -> Path:
    """Write ``report.html`` and ``log.csv`` into a run's folder; the path of the page.

    Args:
        shown: answers to show with their pictures.

    Raises: ReportError if no stage has a log.
    """
    stages = {path.parent.name: log.records(path.parent) for path in sorted(run.glob("*/log.jsonl"), key=number)}
    stages = {name: with_speed(records) for name, records in stages.items() if records}
    if not stages:
        raise ReportError(f"{run} has no stage with a log.jsonl: give the folder that nvila-train run wrote")
    write_table(run / "log.csv", [record for records in stages.values() for record in records])
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        f"<title>{escape(run.name)}</title><style>{STYLE}</style><h1>{escape(run.name)}</h1>",
        *summary(stages),
    ]
    for name, records in stages.items():
        parts.append(f"<h2>{escape(name)}</h2>")
        parts += curves(records)
    if shown:
        right = sum(each.right for each in shown)
        parts.append(
            f"<h2>Answers</h2><p>{right} of {len(shown)} right; drawings and typefaces it never trained on.</p>"
        )
        parts += [figure(each) for each in shown]
    recipe = run / "recipe.toml"
    if recipe.is_file():
        parts.append(f"<h2>Recipe</h2><pre>{escape(recipe.read_text(encoding='utf-8'))}</pre>")
    page = run / "report.html"
    page.write_text("\n".join(parts) + "\n", encoding="utf-8")
    return page


def number(path: Path) -> tuple[int, str]:
    """The order of stages: folders are called ``<number>-<name>``."""
    first, _, name = path.parent.name.partition("-")
    return (int(first), name) if first.isdigit() else (0, path.parent.name)


def with_speed(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Records with steps a second since the line before."""
    found: list[dict[str, Any]] = []
    before: Mapping[str, Any] = {"step": 0, "seconds": 0.0}
    for record in records:
        seconds = record["seconds"] - before["seconds"]
        speed = {"steps_per_second": round((record["step"] - before["step"]) / seconds, 4)} if seconds > 0 else {}
        found.append({**record, **speed})
        before = record
    return found


def summary(stages: Mapping[str, Sequence[Mapping[str, Any]]]) -> Iterator[str]:
    """A table with a row a stage."""
    yield "<table><tr><th>stage<th>steps<th>loss at the end<th>hours"
    for name, records in stages.items():
        last = records[-1]
        yield f"<tr><td>{escape(name)}<td>{last['step']}<td>{last['loss']:g}<td>{last['seconds'] / 3600:.2f}"
    yield "</table>"


def curves(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A curve for every number that is logged; the loss first."""
    names = sorted({name for record in records for name in record} - set(NOT_CURVES), key=lambda name: (
        list(TITLES).index(name) if name in TITLES else 0.5, name))  # fmt: skip
    for name in names:
        given = [record for record in records if name in record]
        yield curve(TITLES.get(name, name), [each["step"] for each in given], [each[name] for each in given])


def figure(shown: Shown) -> str:
    """A picture with what was asked and answered."""
    data = base64.b64encode(shown.png).decode()
    verdict = "right" if shown.right else "wrong"
    truth = "" if shown.right else f"<br>expected: {escape(shown.expected)}"
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{escape(shown.kind)}"><figcaption>'
        f'{escape(shown.question)}<br><b class="{verdict}">{escape(shown.answer)}</b>{truth}</figcaption></figure>'
    )


def write_table(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """All lines as CSV, a column for every name."""
    names = list(dict.fromkeys(name for record in records for name in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    path.write_text(text.getvalue(), encoding="utf-8")
