"""A cache of measurements for these tests alone, so that they measure a shape once and leave no trace."""

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
