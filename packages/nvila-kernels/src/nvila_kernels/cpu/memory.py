"""Memory that was freed, given back to the system.

After the first large tensor is freed, glibc serves its like from its heap, and packing layer after layer leaves holes
there that add up to several times the model. Other C libraries are left as they are.
"""

import ctypes
import ctypes.util
import platform
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from typing import Any

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
"""Parameters of ``mallopt``: bytes from which a block comes from the system by itself and returns to it, and free bytes
at the heap's end from which they return."""
LARGE, USUAL = 2**20, 2**25
"""Values of the first: while packing, and what glibc rises to at most of itself, with twice as much for the second.
Once one of them was set it leaves both alone; the second would stay so low that every large result is new memory."""


@contextmanager
def large_blocks_returned() -> Generator[None]:
    """While this lasts, each large block comes from the system by itself and returns to it when it is freed.

    It is slower: each is new to the process. The threshold is process-wide and the last setting wins, so whoever packs
    a whole model enters this once.
    """
    library = glibc()
    if library is None:
        yield
        return
    library.mallopt(MMAP_THRESHOLD, LARGE)
    try:
        yield
    finally:
        library.mallopt(MMAP_THRESHOLD, USUAL)
        library.mallopt(TRIM_THRESHOLD, 2 * USUAL)
        library.malloc_trim(0)


def give_back() -> None:
    """Return what the heap holds and nobody uses."""
    library = glibc()
    if library is not None:
        library.malloc_trim(0)


def glibc() -> Any:
    """The C library, if it is glibc."""
    return library() if platform.system() == "Linux" else None


@cache
def library() -> Any:
    """Linux's C library, if it is glibc; it is looked for by another program, which takes a while."""
    name = ctypes.util.find_library("c")
    found = ctypes.CDLL(name) if name else None
    return found if hasattr(found, "malloc_trim") else None
