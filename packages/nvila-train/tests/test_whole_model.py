"""A whole NVILA trained by one, two and four processes: pictures and clips, all parts, the same curve and weights."""

import json
import multiprocessing
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

WORKER = Path(__file__).parent / "processes" / "whole.py"
STEPS = 4


def train(folder: Path, *, world: int, kind: str, accumulate: int = 1) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The curve and the weights."""
    context = multiprocessing.get_context("spawn")
    settings: dict[str, Any] = {"folder": str(folder), "world": world, "kind": kind, "accumulate": accumulate}
    processes = [
        context.Process(
            target=runpy.run_path,
            args=(str(WORKER), {"SETTINGS": {**settings, "steps": STEPS, "rank": rank}}, "__main__"),
        )
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * world
    curve = [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]
    return curve, torch.load(f"{folder}.weights", weights_only=True)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[float], dict[str, torch.Tensor]]:
    return train(tmp_path_factory.mktemp("whole") / "one", world=1, kind="none")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "kind", "accumulate"),
    [(2, "ddp", 1), (4, "ddp", 1), (1, "fsdp", 1), (2, "fsdp", 2), (4, "fsdp", 1), (2, "none", 1)],
)
def test_processes_learn_what_one_learns(
    alone: tuple[list[float], dict[str, torch.Tensor]], tmp_path: Path, world: int, kind: str, accumulate: int
):
    curve, weights = train(tmp_path / "run", world=world, kind=kind, accumulate=accumulate)
    assert len(curve) == STEPS
    assert curve == pytest.approx(alone[0], abs=2e-4)
    for name, value in alone[1].items():
        torch.testing.assert_close(weights[name], value, atol=2e-4, rtol=1e-3, msg=name)
