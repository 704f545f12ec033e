"""Try all inputs of some kinds, one after the other; a line of JSON for each that did not end as it should.

``python child.py SEED COUNT KIND...``; every line is flushed, so that whoever watches knows where it stopped. The last
line of each kind counts what was tried and holds the most memory that was resident by then, in bytes.
"""

import json
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path

import clips
import pictures
import requests_of

KINDS = {
    "pictures: broken EXIF": pictures.broken_exif,
    "pictures: notes over a limit": pictures.notes_over_a_limit,
    "pictures: damaged": pictures.damaged,
    "pictures: cut short": pictures.cut_short,
    "pictures: bombs": pictures.bombs,
    "paths of no file": pictures.no_files,
    "clips: turned": clips.turned,
    "clips: damaged": clips.damaged,
    "clips: nameless": clips.nameless,
    "clips: absurd choices": clips.absurd_choices,
    "clips: animations": clips.animations,
    "clips: odd folders": clips.odd_folders,
    "texts": requests_of.texts,
    "messages": requests_of.messages,
    "data URIs": requests_of.data_uris,
    "addresses": requests_of.addresses,
    "templates": requests_of.templates,
}
IN_FOLDER = {"paths of no file", "clips: nameless", "clips: odd folders"}

SECONDS = 60
"""For one input."""


class Late(BaseException):
    """Not caught by whatever the input runs through."""


def late(*_: object) -> None:
    raise Late


def main(kind: str, seed: int, count: int) -> None:
    begun = time.monotonic()
    tried = failed = 0
    with tempfile.TemporaryDirectory() as folder:
        cases = KINDS[kind](Path(folder)) if kind in IN_FOLDER else KINDS[kind](seed, count)
        for case in cases:
            tried += 1
            print(json.dumps({"begun": case.name}), flush=True)
            signal.alarm(SECONDS)
            started = time.monotonic()
            try:
                problem = case.problem()
            except Late:
                problem = f"more than {SECONDS} s"
            signal.alarm(0)
            if problem:
                failed += 1
                print(json.dumps({"kind": kind, "name": case.name, "problem": problem}), flush=True)
            if time.monotonic() - started > 5:
                print(json.dumps({"slow": case.name, "seconds": time.monotonic() - started}), flush=True)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = time.monotonic() - begun
    total = {"kind": kind, "tried": tried, "failed": failed, "resident": resident, "seconds": seconds}
    print(json.dumps(total), flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGALRM, late)
    for name in sys.argv[3:]:
        main(name, int(sys.argv[1]), int(sys.argv[2]))
