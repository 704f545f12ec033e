"""Options and fixtures that every package's tests share."""

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent
MAY_SKIP = (
    "no reference values at", "no ../shared/cases",  # files beside the checkout
    "this system has no large pages",  # the machine's own settings
    "the reference cuts", "packing cuts nothing",  # a form of the golden batch that two tests are not about
)  # fmt: skip
"""Openings of the reasons for which a test may skip in the workspace's own environment."""
WORKERS = 2
"""Processes that run the whole house, one on each core of the machine that checks it."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden", type=Path, default=ROOT.parent / "shared" / "golden", help="folder of the reference's values"
    )
    parser.addoption(
        "--no-skips", action="store_true", help="a test that skips fails: everything it may lack has to be there"
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


def refuse_skip(report: pytest.TestReport | pytest.CollectReport, config: pytest.Config) -> None:
    """A skipped report becomes a failed one under ``--no-skips``, unless its reason is one of ``MAY_SKIP``."""
    if not (config.getoption("--no-skips") and report.skipped and isinstance(report.longrepr, tuple)):
        return
    reason = str(report.longrepr[2]).removeprefix("Skipped: ")
    if not reason.startswith(MAY_SKIP):
        report.outcome = "failed"
        report.longrepr = f"skipped under --no-skips: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    report = yield
    refuse_skip(report, item.config)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector):
    report = yield
    refuse_skip(report, collector.config)
    return report
