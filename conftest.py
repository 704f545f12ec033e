"""Options and fixtures that every package's tests share."""

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent
WORKERS = 2
"""Processes that run the whole house, one on each core of the machine that checks it."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden", type=Path, default=ROOT.parent / "shared" / "golden", help="folder of the reference's values"
    )


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Two workers for the whole house; tests that are named on the command line run here, where they start at once."""
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    return min(WORKERS, os.cpu_count() or 1) if whole else 0


@pytest.fixture(scope="session")
def golden(request: pytest.FixtureRequest) -> Path:
    """The folder of reference values; tests that need it are skipped where it is absent."""
    folder: Path = request.config.getoption("--golden")
    if not (folder / "manifest.json").is_file():
        pytest.skip(f"no reference values at {folder}: pass --golden DIR")
    return folder
