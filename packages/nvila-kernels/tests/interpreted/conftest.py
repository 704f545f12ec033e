"""Checks that run where triton interprets: see ``test_interpreted.py``, which starts them."""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import shim

shim.install()


@pytest.fixture(autouse=True)
def quiet_overflow() -> Iterator[None]:
    """A GPU saturates and overflows without a word; numpy would warn."""
    with np.errstate(all="ignore"):
        yield
