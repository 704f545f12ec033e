"""Options and fixtures that every package's tests share."""

from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden", type=Path, default=ROOT.parent / "shared" / "golden", help="folder of the reference's values"
    )


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden(request: pytest.FixtureRequest) -> Path:
    """The folder of reference values; tests that need it are skipped where it is absent."""
    folder: Path = request.config.getoption("--golden")
    if not (folder / "manifest.json").is_file():
        pytest.skip(f"no reference values at {folder}: pass --golden DIR")
    return folder
