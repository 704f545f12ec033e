"""A cache of measurements for these tests alone, so that they measure a shape once and leave no trace."""

from collections.abc import Callable
from pathlib import Path

import pytest
from nvila_kernels.cpu.folder import FOLDER


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("measured")


@pytest.fixture(autouse=True)
def shared_cache(shared_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER, str(shared_folder))


@pytest.fixture
def cache_folder(shared_cache: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for one test."""
    monkeypatch.setenv(FOLDER, str(tmp_path / "measured"))
    return tmp_path / "measured"


@pytest.fixture
def resident() -> Callable[[Path], int]:
    """KiB in memory of a mapped file, or of those in a folder; for Linux."""

    def count(place: Path) -> int:
        found, here = 0, False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            if "-" in line.split()[0]:
                here = str(place.resolve()) in line
            elif here and line.startswith("Rss:"):
                found += int(line.split()[1])
        return found

    return count
