"""Steps spread over parts and processes, against one plain loop in float64; runs that are killed or lose a process."""

import json
import multiprocessing
import runpy
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from nvila_train.trainer.checkpoint import newest
from nvila_train.trainer.optim import rate_factor

WORKER = Path(__file__).parent / "processes" / "tiny.py"


@pytest.fixture(scope="module")
def tiny() -> Any:
    """The module that the processes run."""
    return SimpleNamespace(**runpy.run_path(str(WORKER)))


def start(folder: Path, *, world: int = 1, **settings: Any) -> list[int | None]:
    """Run the processes of a run; how each of them ended."""
    context = multiprocessing.get_context("forkserver")  # imports once, for all processes of all tests
    context.set_forkserver_preload(["nvila_train.trainer.loop", "torch.distributed.fsdp", "nvila_model"])
    Path(f"{folder}.store").unlink(missing_ok=True)
    processes = [
        context.Process(
            target=runpy.run_path,
            args=(
                str(WORKER),
                {"SETTINGS": {"folder": str(folder), "rank": rank, "world": world, **settings}},
                "__main__",
            ),
        )
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(f"{folder}.weights", weights_only=True)


def plain(tiny: Any, steps: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The same training written out in float64, one batch a step."""
    module = tiny.Tiny().double()
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    vision = list(module.vision.parameters())
    others = [p for p in trained if all(p is not q for q in vision)]
    optimizer = torch.optim.AdamW(
        [{"params": vision, "peak": 3e-3}, {"params": others, "peak": 1e-2}], weight_decay=0.0, betas=(0.9, 0.98)
    )
    found = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * rate_factor(step, steps)
        batch = [tiny.sample(number) for number in range(step * tiny.SAMPLES, (step + 1) * tiny.SAMPLES)]
        total, labels = module([(x.double(), y, None if p is None else p.double()) for x, y, p in batch])
        optimizer.zero_grad()
        (total / labels).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        found.append(float(total.detach() / labels))
    return found, module.state_dict()


@pytest.mark.parametrize(
    ("world", "accumulate", "kind"),
    [
        (1, 1, "none"), (1, 2, "none"), (1, 4, "none"), (2, 1, "none"), (4, 1, "none"), (2, 2, "none"),
        (2, 2, "ddp"), (1, 1, "fsdp"), (2, 2, "fsdp"),
        pytest.param(4, 1, "ddp", marks=pytest.mark.slow), pytest.param(4, 2, "fsdp", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_how_a_step_is_spread_changes_nothing(tiny: Any, tmp_path: Path, world: int, accumulate: int, kind: str):
    folder = tmp_path / "run"
    assert start(folder, world=world, accumulate=accumulate, kind=kind) == [0] * world
    curve, expected = plain(tiny, 6)
    assert losses(folder) == pytest.approx(curve, abs=2e-5)  # the log has five digits
    for name, value in weights(folder).items():
        torch.testing.assert_close(value.double(), expected[name], atol=2e-5, rtol=2e-5, msg=name)


def test_weights_in_bfloat16_do_not_depend_on_how_a_step_is_spread(tmp_path: Path):
    """Two processes draw the same roundings, whether they hold all weights or a share; one differs by their noise."""
    common: dict[str, Any] = {"precision": "bf16", "steps": 12}
    assert start(tmp_path / "large", **common) == [0]
    for name, world, kind in (("one", 1, "none"), ("two", 2, "none"), ("ddp", 2, "ddp"), ("fsdp", 2, "fsdp")):
        assert start(tmp_path / name, world=world, kind=kind, weights=torch.bfloat16, **common) == [0] * world
        assert {value.dtype for value in weights(tmp_path / name).values()} == {torch.bfloat16}
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "one"), abs=3e-3), name
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "large"), abs=5e-3), name
    two = torch.cat([value.flatten() for value in weights(tmp_path / "two").values()])
    for name in ("ddp", "fsdp"):
        other = torch.cat([value.flatten() for value in weights(tmp_path / name).values()])
        assert (two == other).double().mean() > 0.95, name


@pytest.mark.slow
def test_gradients_in_bfloat16_are_summed_in_float32(tmp_path: Path):
    """Of four processes; the mean of ddp differs from the sum of none by a power of two."""
    common: dict[str, Any] = {"precision": "bf16", "weights": torch.bfloat16, "world": 4}
    for kind in ("none", "ddp"):
        assert start(tmp_path / kind, kind=kind, **common) == [0] * 4
    expected = weights(tmp_path / "none")
    assert all(torch.equal(value, expected[name]) for name, value in weights(tmp_path / "ddp").items())


@pytest.mark.parametrize(("before", "after"), [(torch.float32, torch.bfloat16), (torch.bfloat16, torch.float32)])
def test_a_run_goes_on_in_the_other_format(tmp_path: Path, before: torch.dtype, after: torch.dtype):
    common: dict[str, Any] = {"precision": "bf16", "steps": 9, "save_every": 2}
    assert start(tmp_path / "whole", weights=before, **common) == [0]
    assert start(tmp_path / "run", weights=before, ends={0: 5}, **common) == [-9]
    assert start(tmp_path / "run", weights=after, **common) == [0]
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "whole"), abs=5e-3)
    assert {value.dtype for value in weights(tmp_path / "run").values()} == {after}


@pytest.mark.parametrize(
    ("world", "kind", "kept"),
    [
        (1, "none", torch.float32), (2, "fsdp", torch.float32), (2, "fsdp", torch.bfloat16),
        pytest.param(4, "ddp", torch.float32, marks=pytest.mark.slow),
        pytest.param(1, "none", torch.bfloat16, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_killed_run_goes_on_as_if_nothing_had_been(tmp_path: Path, world: int, kind: str, kept: torch.dtype):
    """kill -9 at a random step, with states that do not fall together with lines of the log."""
    common: dict[str, Any] = {
        "world": world, "kind": kind, "steps": 12, "save_every": 2, "log_every": 3, "recompute": "block",
        "weights": kept, "precision": "bf16" if kept == torch.bfloat16 else "fp32",
    }  # fmt: skip
    assert start(tmp_path / "whole", **common) == [0] * world
    killed = Random().randrange(3, 12)
    ended = start(tmp_path / "killed", ends=dict.fromkeys(range(world), killed), **common)
    assert -9 in ended, killed
    assert all(ended), killed
    assert start(tmp_path / "killed", **common) == [0] * world, killed
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole"), killed
    expected = weights(tmp_path / "whole")
    assert all(torch.equal(value, expected[name]) for name, value in weights(tmp_path / "killed").items()), killed


@pytest.mark.slow
def test_a_state_of_four_processes_is_read_by_two_and_by_one(tiny: Any, tmp_path: Path):
    common: dict[str, Any] = {"steps": 9, "save_every": 3, "ema": 0.5}
    assert start(tmp_path / "one", **common) == [0]
    folder = tmp_path / "many"
    for world, kind, ends in ((4, "fsdp", 4), (2, "fsdp", 7), (1, "none", None)):
        stop = {} if ends is None else dict.fromkeys(range(world), ends)
        ended = start(folder, world=world, kind=kind, ends=stop, **common)
        assert all(ended) if stop else not any(ended)  # one that is not killed itself ends by the loss of the others
    assert losses(folder) == pytest.approx(losses(tmp_path / "one"), abs=2e-5)
    expected = weights(tmp_path / "one")
    for name, value in weights(folder).items():
        torch.testing.assert_close(value, expected[name], atol=2e-5, rtol=2e-5, msg=name)


def test_a_lost_process_ends_the_others_with_a_word(tmp_path: Path):
    folder = tmp_path / "run"
    assert start(folder, world=2, ends={1: 4}, save_every=2) == [1, -9]
    assert Path(f"{folder}.error.0").read_text() == (
        "LostProcessError: process 0 of 2 lost another one: see why that one ended, then start all with --resume"
    )
    state = newest(folder)
    assert state is not None
    assert int(state.name) in (2, 4)
    assert start(folder, world=2, save_every=2) == [0, 0]
    assert len(losses(folder)) == 6
