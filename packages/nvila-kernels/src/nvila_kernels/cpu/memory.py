"""Memory of packed weights: what was freed goes back to the system, what stays lies in large pages.

After the first large tensor is freed, glibc serves its like from its heap, and packing layer after layer leaves holes
there that add up to several times the model. Other C libraries are left as they are.

A token reads all weights once, and with pages of 4 KiB a processor looks up a quarter of a million places for a gigabyte;
in a virtual machine each look-up is two.
"""

import ctypes
import ctypes.util
import os
import platform
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

Place: TypeAlias = tuple[int, int]
"""The first byte, and the one behind the last."""
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
"""Parameters of ``mallopt``: bytes from which a block comes from the system by itself and returns to it, and free bytes
at the heap's end from which they return."""
LARGE, USUAL = 2**20, 2**25
"""Values of the first: while packing, and what glibc rises to at most of itself, with twice as much for the second.
Once one of them was set it leaves both alone; the second would stay so low that every large result is new memory."""
DONT_NEED, COLLAPSE = 4, 25
"""Advice to ``madvise``: that pages may leave, of which those of a file come back from it when they are read; and that
filled ones become large ones now, which Linux knows from 6.1 on."""
TRANSPARENT = Path("/sys/kernel/mm/transparent_hugepage")
"""Where Linux tells of large pages that programs need not ask for beforehand."""
FILLED = 0.9
"""The part of a mapping that is in memory, at least, to become large pages: the rest would be taken with it."""


@contextmanager
def apart() -> Generator[None]:
    """While this lasts, large blocks lie apart from the heap. It is slower: each is new to the process.

    What has come by its end moves to large pages.
    """
    library = glibc()
    if library is None:
        yield
        return
    before = mappings()
    library.mallopt(MMAP_THRESHOLD, LARGE)
    try:
        yield
    finally:
        library.mallopt(MMAP_THRESHOLD, USUAL)
        library.mallopt(TRIM_THRESHOLD, 2 * USUAL)
        library.malloc_trim(0)
        enlarge(without(mappings(filled=FILLED), before))


def give_back() -> None:
    """Return what the heap holds and nobody uses."""
    library = glibc()
    if library is not None:
        library.malloc_trim(0)


def unread(file: Path) -> None:
    """Return the pages of a file that is mapped for reading, on Linux; what is read of it later comes from the disk."""
    library = glibc()
    if library is None:
        return
    for line in Path("/proc/self/maps").read_text().splitlines():
        places, access, *_, name = line.split(maxsplit=5)
        if name == str(file.resolve()) and "w" not in access:
            start, end = (int(place, 16) for place in places.split("-"))
            library.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), DONT_NEED)


def enlarge(places: Sequence[Place]) -> None:
    """Move the whole pages in these places to large ones, on Linux; nothing happens where those are turned off.

    All of it is copied, which takes some 0.3 s a gigabyte.
    """
    library, size = glibc(), int(text(TRANSPARENT / "hpage_pmd_size", "0"))
    if library is None or not size or "[never]" in text(TRANSPARENT / "enabled", ""):
        return
    for start, end in places:
        first, last = -(-start // size) * size, end // size * size
        if first < last:
            library.madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), COLLAPSE)


def mappings(*, filled: float = 0.0, maps: Path = Path("/proc/self/smaps")) -> list[Place]:
    """The private mappings without a file, in order, of which at least this part is in memory."""
    found: list[Place] = []
    start = end = 0
    for line in maps.read_text().splitlines():
        name, *fields = line.split()
        if "-" in name:
            access, _, _, inode = fields[:4]
            start, end = (int(place, 16) for place in name.split("-")) if (access, inode) == ("rw-p", "0") else (0, 0)
        elif name == "Rss:" and start < end and int(fields[0]) * 1024 >= filled * (end - start):
            found.append((start, end))
    return found


def without(places: Sequence[Place], others: Sequence[Place]) -> list[Place]:
    """What is left of places, in order, where others were."""
    left: list[Place] = []
    for start, end in places:
        for other_start, other_end in others:
            if start < other_end and other_start < end:
                left.append((start, other_start))
                start = other_end
        left.append((start, end))
    return [(start, end) for start, end in left if start < end]


def text(file: Path, otherwise: str) -> str:
    return file.read_text() if file.is_file() else otherwise


def machine_memory(limit: Path = Path("/sys/fs/cgroup/memory.max")) -> float:
    """Bytes of the machine, or of the container that this runs in; 0 where the system does not tell.

    Args:
        limit: the file in which Linux tells what a container may have.
    """
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows has no such function, some systems not these names
        return 0
    told = text(limit, "").strip()
    return min(total, int(told)) if told.isdigit() else total


def glibc() -> Any:
    """The C library, if it is glibc."""
    name = ctypes.util.find_library("c") if platform.system() == "Linux" else None
    library = ctypes.CDLL(name) if name else None
    return library if hasattr(library, "malloc_trim") else None
