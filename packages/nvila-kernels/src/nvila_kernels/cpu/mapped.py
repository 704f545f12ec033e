"""Tensors in files, for libraries that never let go of what they have read.

In memory such a tensor would be there twice once it is packed. Pages of a file go back to the system, and come from the
disk if they are read once more. The files lie in the user's folder, since the system's for temporary files may be
memory. They have no name where the system allows that, and are gone with the process in any case.
"""

import mmap
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from tempfile import TemporaryFile
from threading import Event, Thread
from typing import IO

import torch
from torch import Tensor

from nvila_kernels.cpu.folder import FOLDER, user_folder

FILE = 2**28
"""Bytes of a file. It is made in full and takes room on the disk as it is filled."""
ALIGNED = 64
"""Bytes of a line of the processor's cache: every tensor begins with one."""
PAUSE = 0.002
"""Seconds between two times that pages are returned: some megabytes are read meanwhile."""


class MappedTensors:
    """Tensors in files that live as long as those who read them."""

    def __init__(self) -> None:
        self.maps: list[mmap.mmap] = []
        self.file: IO[bytes] | None = None
        self.used = 0

    def keep(self, tensor: Tensor) -> Tensor:
        """The same in a file, to be read only.

        Raises: OSError if the disk has no room for it.
        """
        array = tensor.contiguous().numpy()
        make_room(array.nbytes)
        start, file = -(-self.used // ALIGNED) * ALIGNED, self.file
        if file is None or start + array.nbytes > len(self.maps[-1]):
            start, file = 0, self.begin(max(FILE, array.nbytes))
        file.seek(start)
        file.write(array.data)
        file.flush()
        self.used = start + array.nbytes
        return torch.frombuffer(self.maps[-1], dtype=tensor.dtype, count=array.size, offset=start).view(tensor.shape)

    def begin(self, size: int) -> IO[bytes]:
        """Another file."""
        self.close()
        self.file = TemporaryFile(dir=user_folder())  # noqa: SIM115, filled later
        self.file.truncate(size)
        # torch warns of memory that cannot be written; what would be written here would stay in this process
        self.maps.append(mmap.mmap(self.file.fileno(), size, access=mmap.ACCESS_COPY))
        return self.file

    def close(self) -> None:
        """Nothing more is kept; what is there can be read on."""
        if self.file is not None:
            self.file.close()
            self.file = None

    def unread(self) -> None:
        """Return the pages that were read, where the system has a way to."""
        if hasattr(mmap, "MADV_DONTNEED"):
            for each in self.maps:
                each.madvise(mmap.MADV_DONTNEED)

    @contextmanager
    def unread_meanwhile(self) -> Generator[None]:
        """While something reads them, return pages again and again; and once more at the end."""
        done = Event()

        def go_on() -> None:
            while not done.wait(PAUSE):
                self.unread()

        thread = Thread(target=go_on, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            self.unread()


def make_room(needed: int) -> None:
    """The folder of the files. Raises: OSError if its disk has not so many bytes."""
    user_folder().mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(user_folder()).free
    if needed > free:
        raise OSError(
            f"weights of {needed / 2**20:.0f} MiB pass through {user_folder()}, where {free / 2**20:.0f} MiB are free: "
            f"make room, or let {FOLDER} name another folder"
        )
