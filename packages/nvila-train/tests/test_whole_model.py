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


PRELOAD = ["nvila_train.trainer.loop", "torch.distributed.fsdp", "nvila_train.nano.objectives.patches", "nvila_model"]


def train(folder: Path, *, world: int, **more: Any) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The curve and the weights."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    settings: dict[str, Any] = {"folder": str(folder), "world": world, "kind": "none", "accumulate": 1, **more}
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
    return train(tmp_path_factory.mktemp("whole") / "one", world=1)


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


@pytest.mark.slow
def test_patches_are_weighed_the_same_in_every_process(tmp_path: Path):
    """Means over the labels of a whole step: of one process, of two, of four, and of one with two parts."""
    ways = {"one": (1, 1), "two": (2, 1), "four": (4, 1), "parts": (1, 2)}
    found = {
        name: train(tmp_path / name, world=world, accumulate=accumulate, objective="patches")
        for name, (world, accumulate) in ways.items()
    }
    curve, weights = found.pop("one")
    assert curve[-1] < curve[0]
    for name, (other, moved) in found.items():
        assert other == pytest.approx(curve, abs=1e-4), name
        for part, value in weights.items():
            torch.testing.assert_close(moved[part], value, atol=1e-4, rtol=1e-3, msg=f"{name}: {part}")
