"""The folder in which this backend keeps what it makes."""

import os
from pathlib import Path

FOLDER = "NVILA_KERNELS_CACHE"
"""Environment variable that names another folder."""


def user_folder() -> Path:
    """``$NVILA_KERNELS_CACHE``, or ``nvila-kernels`` in the user's cache folder. It may not be there yet."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(FOLDER) or Path(base) / "nvila-kernels")
