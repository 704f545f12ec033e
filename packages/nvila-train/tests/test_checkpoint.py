"""States on disk: a disk that is full, a run that is cut, a folder of an earlier version, weights that are averaged."""

import json
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from nvila_train.trainer.average import Average
from nvila_train.trainer.blocks import prepared
from nvila_train.trainer.checkpoint import CheckpointError, finished, newest
from nvila_train.trainer.loop import train
from nvila_train.trainer.optim import Optimizers
from nvila_train.trainer.parallel import Spread
from torch import Tensor, nn


class Net(nn.Module):
    """Large enough that its state does not fit where a line of the log does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(8, 2000), nn.Linear(2000, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x).tanh())


class Numbers:
    def __init__(self, net: nn.Module, *, at: dict[int, Any] | None = None) -> None:
        self.net, self.at = net, at or {}

    def batch(self, step: int, rank: int, world: int) -> Tensor:
        if step in self.at:
            self.at[step]()
        return torch.randn(4, 8, generator=torch.Generator().manual_seed(step))

    def loss(self, batch: Tensor) -> tuple[Tensor, int, dict[str, float]]:
        return (self.net(batch) - batch.sum(1, keepdim=True)).square().sum(), len(batch), {}


def groups(net: nn.Module) -> list[dict[str, Any]]:
    return [
        {"params": [net.last.weight, net.first.bias, net.last.bias], "lr": 1e-2},
        {"params": [net.first.weight], "lr": 1e-2, "muon": True},
    ]


def run(folder: Path, *, at: dict[int, Any] | None = None, **settings: Any) -> Net:
    net = Net()
    settings = {"steps": 6, "save_every": 2, "log_every": 1, **settings}
    train(Numbers(net, at=at), net, groups=groups(net), folder=folder, **settings)
    return net


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


@contextmanager
def room() -> Iterator[Callable[[int], None]]:
    """Limits how far files may grow in bytes, as a disk does that fills up; without limit again afterwards."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_ends_the_run_and_leaves_the_last_state(tmp_path: Path):
    folder = tmp_path / "full"
    with room() as limit:

        def fill() -> None:
            while newest(folder) is None:
                time.sleep(0.01)
            limit(20_000)

        said = r"cannot write the state of step 4 .* GB are free\); the state of step 2 is whole: make room"
        with pytest.raises(CheckpointError, match=said):
            run(folder, at={3: fill})
    state = newest(folder)
    assert state is not None
    assert [path.name for path in state.parent.iterdir()] == ["00000002"], "nothing half-written is left"
    resumed, whole = run(folder), run(tmp_path / "whole")
    assert losses(folder) == losses(tmp_path / "whole")
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))


def test_a_disk_that_was_always_full(tmp_path: Path):
    with room() as limit:
        limit(20_000)
        with pytest.raises(CheckpointError, match="there is no earlier state"):
            run(tmp_path)
    assert newest(tmp_path) is None


def test_a_state_without_its_end_is_not_one(tmp_path: Path):
    run(tmp_path, steps=2)
    cut = tmp_path / "state" / "00000004"
    cut.mkdir()
    (cut / "__0_0.distcp").write_bytes(b"half")
    assert not finished(tmp_path, Net(), steps=4)
    run(tmp_path, steps=4)
    assert finished(tmp_path, Net(), steps=4)
    assert len(losses(tmp_path)) == 4


def test_a_state_of_another_model_is_refused(tmp_path: Path):
    run(tmp_path, steps=2)
    other = nn.Linear(3, 3)
    task: Any = Numbers(other)
    with pytest.raises(CheckpointError, match="use the recipe it was made with, or remove it to begin anew"):
        train(task, other, groups=[{"params": list(other.parameters()), "lr": 1e-2}], steps=4, folder=tmp_path)


def test_a_folder_of_an_earlier_version_goes_on(tmp_path: Path):
    """``state.pt`` as it was written before, made here by hand at step 3 of 6."""
    whole = run(tmp_path / "whole", save_every=100)
    net = Net()

    class Cut(Exception):  # noqa: N818
        pass

    def stop() -> None:
        raise Cut

    kept: list[Optimizers] = []
    original = Optimizers.step

    def step(self: Optimizers) -> None:
        kept.append(self)
        original(self)

    Optimizers.step = step  # type: ignore[method-assign]
    try:
        with pytest.raises(Cut):
            train(Numbers(net, at={3: stop}), net, groups=groups(net), folder=tmp_path / "old", steps=6, log_every=1)
    finally:
        Optimizers.step = original  # type: ignore[method-assign]
    trained = [name for name, _ in net.named_parameters()]
    state = {
        "step": 3, "seconds": 1.5, "module": net.state_dict(), "trained": trained, "optimizer": kept[-1].state_dict()
    }  # fmt: skip
    torch.save(state, tmp_path / "old" / "state.pt")
    assert finished(tmp_path / "old", Net(), steps=3)
    resumed = run(tmp_path / "old")
    assert losses(tmp_path / "old") == losses(tmp_path / "whole")
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))
    assert newest(tmp_path / "old") is not None, "it is converted"


def test_averaged_weights_against_the_sum_written_out():
    weight = nn.Parameter(torch.tensor([1.0]))
    average = Average([("weight", weight)], decay=0.75)
    for value in (2.0, 4.0):
        weight.data.fill_(value)
        average.update()
    average.apply()
    assert float(weight.detach()) == pytest.approx(0.75 * (0.75 * 1 + 0.25 * 2) + 0.25 * 4)


@pytest.mark.filterwarnings("ignore:A saved_tensors_hooks context:FutureWarning")  # only the test counts with hooks
@pytest.mark.parametrize("how", ["none", "selective", "block"])
def test_recomputing_changes_what_is_kept_and_not_what_is_learnt(how: Any):
    net = Net()
    block = nn.Sequential(net.first, nn.Tanh(), net.last)
    x = torch.randn(4, 8)
    expected = torch.autograd.grad(block(x).sum(), list(block.parameters()))
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with prepared([block], recompute=how), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        found = torch.autograd.grad(block(x).sum(), list(block.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    inner = 4 * 2000
    assert (inner in kept) == (how == "none"), kept
    assert "forward" not in block.__dict__, "the block is as before"


@pytest.mark.slow
def test_compiled_blocks_are_as_before_afterwards():
    block = nn.Linear(2, 2)
    with prepared([block], compiled=True):
        assert block._compiled_call_impl is not None
    assert block._compiled_call_impl is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # dynamo looks at a block's input
def test_compiled_steps_learn_the_same(tmp_path: Path):
    plain, net = run(tmp_path / "plain"), Net()
    spread = Spread(compiled=True, blocks=(net.first, net.last))
    train(Numbers(net), net, groups=groups(net), folder=tmp_path / "compiled", steps=6, log_every=1, spread=spread)
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), abs=1e-4)
    for a, b in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
