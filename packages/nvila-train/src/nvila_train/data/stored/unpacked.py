"""Files packed with gzip, unpacked once into the user's cache folder, so that any row of them can be read alone."""

import gzip
import hashlib
import os
import shutil
import zlib
from pathlib import Path
from typing import Final

from nvila_train.data.source import SourceError
from nvila_train.data.stored.offsets import cache_folder

PIECE: Final = 2**20
SPARE: Final = 2**30
"""Bytes that are left free on the disk of the cache."""


def unpacked(path: Path) -> Path:
    """Where the content of a packed file lies; it is unpacked if it is not there yet, or has changed.

    Raises: SourceError if the file is damaged or cut short, or the disk has no room.
    """
    if not path.is_file():
        raise SourceError(f"no file at {path}: give the path of a packed file")
    facts = path.stat()
    mark = hashlib.sha256(f"{path.resolve()}\n{facts.st_size}\n{facts.st_mtime_ns}".encode()).hexdigest()[:32]
    folder = cache_folder().with_name("unpacked")
    kept = folder / f"{mark}-{path.name.removesuffix('.gz')}"
    if kept.is_file():
        return kept
    partial = folder / f"{mark}.{os.getpid()}.new"
    done = 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with gzip.open(path, "rb") as source, partial.open("wb") as target:
            while piece := source.read(PIECE):
                if shutil.disk_usage(folder).free < SPARE:
                    raise SourceError(f"no room to unpack {path} into {folder}: make some, or set XDG_CACHE_HOME")
                target.write(piece)
                done += len(piece)
        partial.replace(kept)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise SourceError(
            f"{path} is damaged or cut short after {done} unpacked bytes ({error}): copy it again"
        ) from None
    except OSError as error:
        raise SourceError(f"cannot unpack {path} into {folder}: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)
    return kept
