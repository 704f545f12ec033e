"""How threads of OpenMP wait."""

import os
import subprocess
import sys

import pytest
from nvila_model.cpu.openmp import SETTINGS, wait_briefly


def test_settings_are_added_where_nobody_has_any() -> None:
    environment = {"PATH": "here"}
    wait_briefly(environment)
    assert environment == {"PATH": "here", **SETTINGS}


@pytest.mark.parametrize("name", SETTINGS)
def test_what_somebody_has_set_stays_as_it_is(name: str) -> None:
    environment = {name: "active"}
    wait_briefly(environment)
    assert environment == {name: "active"}


def test_the_command_sets_them_before_torch_comes() -> None:
    code = "import os, sys, nvila_model.cli as _; print('torch' in sys.modules, os.environ['GOMP_SPINCOUNT'])"
    environment = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    told = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["False", SETTINGS["GOMP_SPINCOUNT"]]
