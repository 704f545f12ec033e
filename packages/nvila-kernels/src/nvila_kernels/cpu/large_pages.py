"""Packed weights in large pages.

A token reads every weight once, page after page, and where pages are small, finding them takes a part of its time.
Linux moves memory into large ones when it is asked, from release 6.1; elsewhere it stays where it is.
"""

import ctypes
import mmap
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path

from nvila_kernels.cpu.memory import give_back, glibc

SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")
"""What the system's owner says of large pages, and how many bytes one has."""
MAPS = Path("/proc/self/maps")
PAGE = 2**12
"""Bytes of a usual page where large ones are worth having: of those of 64 KiB a large one has 512 MiB."""
COLLAPSE = 25
"""The advice to ``madvise`` to move memory into large pages, now."""


@contextmanager
def in_large_pages() -> Generator[None]:
    """Memory that is filled while this lasts is moved into large pages at its end. It takes no more room there."""
    size = large_page()
    if not size:
        yield
        return
    give_back()  # what is free may be filled again
    before = set(filled(size))
    yield
    for start, count in runs(place for place in filled(size) if place not in before):
        # where it cannot be moved it is read as before, only slower
        glibc().madvise(ctypes.c_void_p(start * size), ctypes.c_size_t(count * size), COLLAPSE)


def large_page(settings: Path = SETTINGS) -> int:
    """Bytes of a large page; 0 where there are none, none are wanted, or usual ones have not 4 KiB."""
    size, wanted = settings / "hpage_pmd_size", settings / "enabled"
    if glibc() is None or mmap.PAGESIZE != PAGE or not size.is_file() or "[never]" in wanted.read_text():
        return 0
    return int(size.read_text())


def filled(size: int) -> Iterator[int]:
    """Places that a large page could take, counted from address 0, all of whose usual pages are in memory.

    Where some are not, a large page would take more than is used.
    """
    library, pages = glibc(), size // PAGE
    for line in MAPS.read_text().splitlines():
        addresses, access, _, _, inode, *_ = line.split(maxsplit=5)
        if access != "rw-p" or inode != "0":
            continue
        start, end = (int(address, 16) for address in addresses.split("-"))
        first, behind = -(-start // size), end // size
        if first >= behind:
            continue
        present = ctypes.create_string_buffer((behind - first) * pages)
        if library.mincore(ctypes.c_void_p(first * size), ctypes.c_size_t((behind - first) * size), present) == 0:
            told = present.raw
            for place in range(behind - first):
                if told.count(1, place * pages, (place + 1) * pages) == pages:
                    yield first + place


def runs(places: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Ascending numbers -> the first of each run without a gap, and how many it has."""
    for _, run in groupby(enumerate(places), lambda each: each[1] - each[0]):
        numbers = [number for _, number in run]
        yield numbers[0], len(numbers)
