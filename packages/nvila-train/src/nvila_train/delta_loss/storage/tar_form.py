"""Rows of WebDataset shards: a subset is one shard with all members of its samples, bit for bit."""

import hashlib
import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

from nvila_train.data.stored.tar_shards import ShardRows, named
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
            with tarfile.open(path, mode="r:") as tar:
                for member in tar:
                    ending = named(member)[1]
                    content = tar.extractfile(member) if ending else None
                    if content is not None:
                        content.seek(0 if ending == "json" else max(0, member.size - TAIL))
                        name = f"{member.name} {member.size}\n".encode(errors="surrogateescape")
                        hashed.update(name + content.read())
        return hashed.hexdigest()

    def write(self, rows: Sequence[int], out: Path) -> None:
        """Raises: DeltaLossError if two samples of one name would stand behind each other, and so become one."""
        last = ""
        with out.open("wb") as file:
            for row in rows:
                members = self.rows.stored(row)
                key = key_of(members)
                if key == last:
                    raise DeltaLossError(
                        f"two samples called {key}, of which row {row} is one, would become one in {out.name}: give "
                        "samples of different shards different names and score them again"
                    )
                last = key
                file.write(members)
            end = file.tell() + 2 * tarfile.BLOCKSIZE
            file.write(bytes(2 * tarfile.BLOCKSIZE + (-end) % tarfile.RECORDSIZE))


def key_of(members: bytes) -> str:
    """What the first of the members, and so each of them, is called before its ending."""
    with tarfile.open(fileobj=io.BytesIO(members)) as tar:
        first = tar.next()
        assert first is not None
        return named(first)[0]
