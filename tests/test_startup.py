"""How long people wait before anything happens: what a command imports, exactly, and the processor time it takes.

Times are compared with importing torch in the same environment, so that a slow or a busy machine does not matter.
"""

import resource
import subprocess
import sys

import pytest

COMMANDS = {
    "nvila": "from nvila_model.cli import main; main()",
    "nvila-train": "from nvila_train.cli import main; main()",
}
SLOW_TO_IMPORT = {"torch", "transformers", "numpy", "pydantic"}
NEEDLESS = {
    "torch._dynamo", "torch._inductor", "sympy", "torchvision", "timm", "open_clip", "transformers",
    "huggingface_hub", "numba", "onnxruntime",
}  # fmt: skip
"""For an answer of nano. The first two are what the first random number on the meta device imports."""


def imported(command: str, *words: str) -> set[str]:
    """The modules that a command imports."""
    run = [sys.executable, "-X", "importtime", "-c", COMMANDS[command], *words]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    lines = (line for line in done.stderr.splitlines() if line.startswith("import time:"))
    return {line.rpartition("|")[2].strip() for line in lines}


def processor_seconds(code: str, *words: str) -> float:
    """User and system seconds of a process, the least of two."""
    taken: list[float] = []
    for _ in range(2):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-c", code, *words], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    return min(taken)


@pytest.fixture(scope="module")
def torch_seconds() -> float:
    return processor_seconds("import torch")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_nothing_slow(command: str):
    assert not SLOW_TO_IMPORT & imported(command, "--help")


def test_an_answer_imports_what_it_needs():
    found = imported("nvila", "ask", "What is this?", "--max-new-tokens", "1")
    assert "torch" in found
    assert not NEEDLESS & found


@pytest.mark.parametrize("command", COMMANDS)
def test_help_takes_a_fraction_of_importing_torch(command: str, torch_seconds: float):
    assert processor_seconds(COMMANDS[command], "--help") < 0.3 * torch_seconds


def test_an_answer_takes_little_more_than_importing_torch(torch_seconds: float):
    assert processor_seconds(COMMANDS["nvila"], "ask", "What is this?", "--max-new-tokens", "1") < 1.7 * torch_seconds
