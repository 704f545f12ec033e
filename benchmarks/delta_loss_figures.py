"""The tables of what ``delta_loss_table.py`` has trained so far.

    uv run python benchmarks/delta_loss_figures.py runs/deltaloss

An error behind ± is the standard error over the test questions, of the mean over the seeds. ``ahead of random`` pairs
each question with itself under the random share of the same size, over the seeds that both have.
"""

import json
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from delta_loss_pool import QUALITIES
from nvila_train.nano.drawing import KINDS

Key = tuple[str, float]
"""A method and the share of the pool that it keeps."""


def tables(work: Path) -> str:
    """The methods, then the kinds."""
    pool, test = written(work / "pruned.jsonl"), written(work / "test.jsonl")
    sources = np.array([record["source"] for record in test])
    lines = written(work / "cells.jsonl")
    groups: dict[Key, dict[int, dict[str, Any]]] = defaultdict(dict)
    for line in lines:
        groups[line["method"], line["keep"]][line["seed"]] = line
    right = {key: {seed: answers(line) for seed, line in found.items()} for key, found in groups.items()}
    guessed = np.array(blind(pool, test), dtype=float)
    return "\n".join([
        f"{len(test)} questions",
        "",
        "| kept | method | samples | sound / told / wrong, % | seeds | exact match, % | deviation | ahead of random |",
        "|---|---|---|---|---|---|---|---|",
        f"| | blind guess | | | | {percent(guessed)} | | |",
        *(row(key, groups[key], right) for key in groups),
        "",
        f"| kept | method | {' | '.join(KINDS)} |",
        "|---|---|" + "---|" * len(KINDS),
        kinds("| | blind guess |", guessed, sources),
        *(kinds(f"| {named(key)} |", mean(right[key]), sources) for key in groups),
    ])  # fmt: skip


def written(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def row(key: Key, lines: dict[int, dict[str, Any]], right: dict[Key, dict[int, np.ndarray]]) -> str:
    """One line of the first table."""
    found = right[key]
    shares = [100 * each.mean() for each in found.values()]
    deviation = f"{statistics.stdev(shares):.1f}" if len(shares) > 1 else ""
    random = right.get(("random", key[1]), {})
    both = found.keys() & random.keys() if key[0] != "random" else set[int]()
    ahead = percent(mean({seed: found[seed] - random[seed] for seed in both})) if both else ""
    held = sum((Counter(line["qualities"]) for line in lines.values()), Counter[str]())
    qualities = " / ".join(f"{100 * held[each] / held.total():.0f}" for each in QUALITIES) if held else ""
    samples = next(iter(lines.values()))["samples"] or ""
    return f"| {named(key)} | {samples} | {qualities} | {len(found)} | {percent(mean(found))} | {deviation} | {ahead} |"


def kinds(head: str, right: np.ndarray, sources: np.ndarray) -> str:
    """One line of the second table."""
    return f"{head} {' | '.join(percent(right[sources == kind]) for kind in KINDS)} |"


def named(key: Key) -> str:
    return f"{100 * key[1]:.0f} % | {key[0]}"


def answers(line: dict[str, Any]) -> np.ndarray:
    """1 for each question that was answered right, 0 for the others."""
    return np.array([int(each) for each in line["right"]], dtype=float)


def mean(found: dict[int, np.ndarray]) -> np.ndarray:
    """Over the seeds, ``[questions]``."""
    return np.mean([*found.values()], axis=0)


def percent(shares: np.ndarray) -> str:
    """The mean over questions and its standard error."""
    return f"{100 * shares.mean():.1f} ± {100 * shares.std(ddof=1) / len(shares) ** 0.5:.1f}"


def blind(pool: Sequence[dict[str, Any]], test: Sequence[dict[str, Any]]) -> list[bool]:
    """Whether each question is guessed by who knows the sound part of the pool and sees no picture."""
    told: dict[str, Counter[str]] = defaultdict(Counter)
    overall: dict[str, Counter[str]] = defaultdict(Counter)
    for record in pool:
        question, answer = (turn["value"] for turn in record["conversations"])
        if record["quality"] == "sound":
            told[question][answer] += 1
            overall[record["source"]][answer] += 1
    guesses: list[bool] = []
    for record in test:
        question, answer = (turn["value"] for turn in record["conversations"])
        guess = told.get(question, overall[record["source"]]).most_common(1)[0][0]
        guesses.append(guess == answer)
    return guesses


if __name__ == "__main__":
    print(tables(Path(sys.argv[1])))
