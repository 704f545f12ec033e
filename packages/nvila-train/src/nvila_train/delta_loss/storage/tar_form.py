"""Rows of WebDataset shards: a subset is one shard with all members of its samples, bit for bit."""

import hashlib
import tarfile
from collections.abc import Sequence
from pathlib import Path

from nvila_train.data.stored.tar_members import members
from nvila_train.data.stored.tar_samples import samples
from nvila_train.data.stored.tar_shards import ShardRows, read_at, reading
from nvila_train.delta_loss.choices import DeltaLossError
from nvila_train.delta_loss.storage.form import TAIL


class Tars:
    """Samples of tar files. Their digest is that of their number, their members' names and sizes, and their records."""

    endings = (".tar",)

    def __init__(self, rows: ShardRows) -> None:
        self.rows = rows

    def digest(self) -> str:
        hashed = hashlib.sha256(f"{len(self.rows)}\n".encode())
        for path in self.rows.paths:
            with path.open("rb") as file:
                for sample in samples(members(read_at(file))):
                    for member in sample.members:
                        hashed.update(f"{member.name} {member.size}\n".encode(errors="surrogateescape"))
                        whole = member.name.lower().endswith(".json") and not member.damage
                        start = 0 if whole else max(0, member.size - TAIL)
                        file.seek(member.data + start)
                        hashed.update(file.read(member.size - start))
        return hashed.hexdigest()

    def write(self, rows: Sequence[int], out: Path) -> None:
        """Raises: DeltaLossError if two samples of one name would stand behind each other, and so become one."""
        last = ""
        with out.open("wb") as file:
            for row in rows:
                stored = self.rows.stored(row)
                key = key_of(stored)
                if key == last:
                    raise DeltaLossError(
                        f"two samples called {key}, of which row {self.rows.number(row)} is one, would become one in "
                        f"{out.name}: give samples of different shards different names and score them again"
                    )
                last = key
                file.write(stored)
            end = file.tell() + 2 * tarfile.BLOCKSIZE
            file.write(bytes(2 * tarfile.BLOCKSIZE + (-end) % tarfile.RECORDSIZE))


def key_of(stored: bytes) -> str:
    """What a sample is called, from its members as they are stored."""
    return next(samples(members(reading(stored)))).key
