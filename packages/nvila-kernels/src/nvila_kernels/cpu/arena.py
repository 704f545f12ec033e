"""Memory for packed weights: one piece behind the other in large pages, from the start.

A weight by itself would leave the rest of its last large page unused.
"""

import mmap
import threading

import torch
from torch import Tensor

from nvila_kernels.cpu.large_pages import large_page

LINE = 64
"""Bytes of a line of the processor's cache; every piece starts at one."""
CHUNK = 2**26
"""Bytes that are asked of the system at a time; only what is written of them takes memory."""

_lock = threading.Lock()
_rest = torch.empty(0, dtype=torch.uint8)


def take(size: int) -> Tensor:
    """So many bytes, uint8 ``[size]``; their memory returns to the system when all pieces of a chunk are gone."""
    global _rest
    whole = -(-size // LINE) * LINE
    with _lock:
        if len(_rest) < whole:
            with torch.inference_mode(False):  # others write to the rest of it, perhaps in another mode
                fresh = chunk(max(whole, CHUNK))
            if whole >= CHUNK:
                return fresh[:size]
            _rest = fresh
        piece, _rest = _rest[:size], _rest[whole:]
    return piece


def chunk(size: int) -> Tensor:
    """Fresh memory in large pages where the system has them."""
    page = large_page()
    if not page:
        room = torch.empty(size + LINE, dtype=torch.uint8)
        return room[-room.data_ptr() % LINE :][:size]
    room = mmap.mmap(-1, size + page, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    room.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(room, dtype=torch.uint8)
    return whole[-whole.data_ptr() % page :][:size]
