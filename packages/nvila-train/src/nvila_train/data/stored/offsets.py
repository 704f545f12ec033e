"""Where the rows of a large file begin, found once.

A file of ten gigabytes is never held in memory: one pass notes where each row begins, eight bytes a row, and a row is
read from there when it is asked for. The notes on large files are kept in the user's cache folder, named for the file's
path, size and time of change, and mapped into memory, so that worker processes share them.
"""

import contextlib
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

LARGE = 64 * 2**20
"""Bytes of a file from which on its notes are kept."""


def offsets(path: Path, find: Callable[[Path], np.ndarray]) -> np.ndarray:
    """``find(path)``, kept for the next time if the file is large."""
    facts = path.stat()
    if facts.st_size < LARGE:
        return find(path)
    said = f"{find.__name__}\n{path.resolve()}\n{facts.st_size}\n{facts.st_mtime_ns}"
    kept = cache_folder() / f"{hashlib.sha256(said.encode()).hexdigest()[:32]}.npy"
    if kept.is_file():
        try:
            return np.load(kept, mmap_mode="r")
        except (OSError, ValueError, EOFError):  # a damaged cache costs a pass, and is written anew
            pass
    found = find(path)
    partial = kept.with_suffix(f".{os.getpid()}.new.npy")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.save(partial, found)
        partial.replace(kept)
        return np.load(kept, mmap_mode="r")
    except (
        OSError,
        ValueError,
    ):  # a full disk or a read-only home costs the next start a pass, and must not end this one
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        return found


def cache_folder() -> Path:
    """``nvila-train/offsets`` in the user's cache folder (``XDG_CACHE_HOME``, else ``~/.cache``)."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "nvila-train" / "offsets"
