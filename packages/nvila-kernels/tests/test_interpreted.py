"""Run the checks of ``interpreted/`` once, in a process of their own where triton interprets its kernels.

The interpreter must be chosen before triton is imported, and a process that chose it cannot compile ahead of time.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

FOLDER = Path(__file__).parent / "interpreted"
CHECKS = sorted(path.stem for path in FOLDER.glob("check_*.py"))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The failures of each check file (a name and a message), after a run of all of them."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed on this platform")
    report = tmp_path_factory.mktemp("interpreted") / "report.xml"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-o",
        "python_files=check_*.py",
        "-o",
        "python_functions=check_*",
    ]
    run = subprocess.run(
        [*command, f"--junitxml={report}", str(FOLDER)],
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert report.is_file(), run.stdout + run.stderr
    found: dict[str, list[str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        failures = found.setdefault(str(case.get("classname")).rsplit(".", 1)[-1], [])
        failures += [f"{case.get('name')}: {bad.get('message')}" for bad in case if bad.tag in ("failure", "error")]
    assert found, run.stdout + run.stderr
    return found


@pytest.mark.parametrize("check", CHECKS)
def test_interpreted(results: dict[str, list[str]], check: str) -> None:
    assert check in results, f"{check} did not run: {list(results)}"
    assert results[check] == []
