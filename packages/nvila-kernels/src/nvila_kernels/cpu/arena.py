"""Memory for packed weights: one piece after the other in large pages, from the start.

A token reads every weight once, page after page, and where pages are small, finding them takes a part of its time. A
weight by itself would leave the rest of its last large page unused, so whoever packs many has one arena for all.
"""

import mmap
from pathlib import Path

import torch
from torch import Tensor

from nvila_kernels.cpu.memory import glibc

LINE = 64
"""Bytes of a line of the processor's cache; every piece starts at one."""
CHUNK = 2**26
"""Bytes that are asked of the system at a time; only what is written of them takes memory."""
SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")
"""What the system's owner says of large pages, and how many bytes one has."""
PAGE = 2**12
"""Bytes of a usual page where large ones are worth having: of those of 64 KiB a large one has 512 MiB."""


class Arena:
    """Hands out pieces of memory; a chunk returns to the system when all of its pieces are gone. One thread at a time.

    Args:
        chunk: bytes that are asked of the system at a time.
    """

    def __init__(self, chunk: int = CHUNK) -> None:
        self.chunk = chunk
        self.free = torch.empty(0, dtype=torch.uint8)

    def take(self, size: int) -> Tensor:
        """So many bytes, uint8 ``[size]``."""
        whole = -(-size // LINE) * LINE
        if len(self.free) < whole:
            with torch.inference_mode(False):  # later pieces are written perhaps in another mode
                fresh = allocate(max(whole, self.chunk))
            if whole >= self.chunk:
                return fresh[:size]
            self.free = fresh
        piece, self.free = self.free[:size], self.free[whole:]
        return piece


def allocate(size: int) -> Tensor:
    """Fresh memory in large pages where the system has them."""
    page = large_page()
    if not page:
        memory = torch.empty(size + LINE, dtype=torch.uint8)
        return memory[-memory.data_ptr() % LINE :][:size]
    mapped = mmap.mmap(-1, size + page, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mapped.madvise(mmap.MADV_HUGEPAGE)
    memory = torch.frombuffer(mapped, dtype=torch.uint8)
    return memory[-memory.data_ptr() % page :][:size]


def large_page(settings: Path = SETTINGS) -> int:
    """Bytes of a large page; 0 where there are none, none are wanted, or usual ones have not 4 KiB."""
    size, wanted = settings / "hpage_pmd_size", settings / "enabled"
    if glibc() is None or mmap.PAGESIZE != PAGE or not size.is_file() or "[never]" in wanted.read_text():
        return 0
    return int(size.read_text())
