"""The folder in which this package keeps what it makes on a machine."""

import os
from pathlib import Path

FOLDER = "NVILA_KERNELS_CACHE"
"""Environment variable that names another folder."""


def user_folder() -> Path:
    """``$NVILA_KERNELS_CACHE``, or ``nvila-kernels`` in the user's cache folder. It may not be there yet.

    Raises: OSError if the user has no folder.
    """
    if named := os.environ.get(FOLDER):
        return Path(named)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "nvila-kernels"
    try:
        return Path.home() / ".cache" / "nvila-kernels"
    except RuntimeError as error:
        raise FileNotFoundError(f"there is no home folder ({error}): name one by {FOLDER}") from None


def replace_file(file: Path, content: bytes) -> None:
    """Write a file in one step, so that a reader never finds half of it. Raises: OSError."""
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(f"{file.name}.{os.getpid()}")
    fresh.write_bytes(content)
    os.replace(fresh, file)
