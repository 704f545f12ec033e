"""Inputs that strangers send, of every kind, each read or refused in one sentence within time and memory.

Each kind runs in a process of its own, whose resident memory is watched; the inputs are drawn by a fixed seed.
``python tests/hostile/test_hostile.py [COUNT [KIND...]]`` prints the table of docs/refusals.md.
"""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
SEED = 20
MEMORY = 3 << 30
"""Bytes that may be resident."""

KINDS = [
    "pictures: broken EXIF", "pictures: notes over a limit", "pictures: damaged", "pictures: cut short",
    "pictures: bombs", "paths of no file", "clips: turned", "clips: damaged", "clips: nameless",
    "clips: absurd choices", "clips: animations", "clips: odd folders", "texts", "messages", "data URIs", "addresses",
    "templates",
]  # fmt: skip
SLOW = ["pictures: bombs", "addresses", "templates"]
"""Kinds whose inputs are meant to take time."""


def tried(kinds: list[str], count: int) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]]:
    """The last line of each kind, and what went wrong; a child that dies or grows too large is what went wrong."""
    command = [sys.executable, "-W", "ignore", str(HERE / "child.py"), str(SEED), str(count), *kinds]
    environment = {**os.environ, "NVILA_LIMITS": "fetch_seconds=2,template_seconds=2"}
    largest = [0]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:
        watching = threading.Thread(target=_watch, args=(child, largest))
        watching.start()
        assert child.stdout is not None
        lines = [json.loads(line) for line in child.stdout if line.startswith("{")]
        watching.join()
    totals = {line["kind"]: line for line in lines if "tried" in line}
    problems = [line for line in lines if "problem" in line]
    if len(totals) < len(kinds):
        last = [line["begun"] for line in lines if "begun" in line][-1:]
        problems.append({"name": last, "problem": f"ended by {child.returncode} with {largest[0] >> 20} MiB"})
    return totals, problems


def _watch(child: subprocess.Popen[str], largest: list[int]) -> None:
    """End a child that grows beyond ``MEMORY``."""
    while child.poll() is None:
        try:
            status = Path(f"/proc/{child.pid}/status").read_text()
            resident = int(status.split("VmRSS:")[1].split()[0]) << 10
        except (OSError, IndexError):
            resident = 0
        largest[0] = max(largest[0], resident)
        if resident > MEMORY:
            child.kill()
        time.sleep(0.05)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=[pytest.mark.slow] if kind in SLOW else []) for kind in KINDS]
)
def test_every_input_of_a_kind_ends_well(kind: str) -> None:
    totals, problems = tried([kind], 4)
    assert not problems
    assert totals[kind]["tried"] >= 10
    assert totals[kind]["resident"] < MEMORY


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kinds", "count"),
    [
        pytest.param(SLOW, 40, id="slow"),
        pytest.param([kind for kind in KINDS if kind not in SLOW], 40, id="many"),
    ],
)
def test_every_input_ends_well(kinds: list[str], count: int) -> None:
    totals, problems = tried(kinds, count)
    assert not problems
    assert min(total["tried"] for total in totals.values()) >= 10
    assert max(total["resident"] for total in totals.values()) < MEMORY


if __name__ == "__main__":
    for name in sys.argv[2:] or KINDS:
        found, wrong = tried([name], int(sys.argv[1]) if len(sys.argv) > 1 else 4)
        total = found.get(name, {"tried": 0, "resident": 0, "seconds": 0})
        print(
            f"| {name} | {total['tried']} | {len(wrong)} | {total['resident'] >> 20} MiB | {total['seconds']:.0f} s |",
            flush=True,
        )
        for problem in wrong[:8]:
            print("    ", problem["name"], "->", problem["problem"][:700], file=sys.stderr)
