"""Memory that was freed, given back to the system.

After the first large tensor is freed, glibc serves its like from its heap, and packing layer after layer leaves holes
there that add up to several times the model. Other C libraries are left as they are.
"""

import ctypes
import ctypes.util
import os
import platform
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
"""Parameters of ``mallopt``: bytes from which a block comes from the system by itself and returns to it, and free bytes
at the heap's end from which they return."""
LARGE, USUAL = 2**20, 2**25
"""Values of the first: while packing, and what glibc rises to at most of itself, with twice as much for the second.
Once one of them was set it leaves both alone; the second would stay so low that every large result is new memory."""
thresholds = [USUAL]
"""Of all who set the first, the last one's at the end."""
DONT_NEED = 4
"""The advice to ``madvise`` that pages may leave; those of a file come back from it when they are read."""


@contextmanager
def apart() -> Generator[None]:
    """While this lasts, large blocks lie apart from the heap. It is slower: each is new to the process."""
    library = glibc()
    if library is None:
        yield
        return
    thresholds.append(LARGE)
    library.mallopt(MMAP_THRESHOLD, LARGE)
    try:
        yield
    finally:
        thresholds.pop()
        library.mallopt(MMAP_THRESHOLD, thresholds[-1])
        library.mallopt(TRIM_THRESHOLD, 2 * USUAL)
        library.malloc_trim(0)


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


def machine_memory(limit: Path = Path("/sys/fs/cgroup/memory.max")) -> float:
    """Bytes of the machine, or of the container that this runs in; 0 where the system does not tell.

    Args:
        limit: the file in which Linux tells what a container may have.
    """
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows has no such function, some systems not these names
        return 0
    told = limit.read_text().strip() if limit.is_file() else ""
    return min(total, int(told)) if told.isdigit() else total


def glibc() -> Any:
    """The C library, if it is glibc."""
    return library() if platform.system() == "Linux" else None


@cache
def library() -> Any:
    """Linux's C library, if it is glibc; it is looked for by another program, which takes a while."""
    name = ctypes.util.find_library("c")
    found = ctypes.CDLL(name) if name else None
    return found if hasattr(found, "malloc_trim") else None
