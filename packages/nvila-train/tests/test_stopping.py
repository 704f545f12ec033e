"""A run that is asked to stop saves its step; one that breaks says what there is to go on from."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from nvila_train.trainer.checkpoint import newest
from nvila_train.trainer.loop import NotFiniteError, train
from nvila_train.trainer.stopping import Stopped, stop_request
from torch import Tensor, nn


class Line:
    """A straight line to fit; in one step a signal comes, or the loss is not a number."""

    def __init__(
        self, module: nn.Module, *, ask: int | None = None, number: int = signal.SIGTERM, nan: int = -1
    ) -> None:
        self.module, self.ask, self.number, self.nan = module, ask, number, nan

    def batch(self, step: int, rank: int, world: int) -> int:
        if step == self.ask:
            os.kill(os.getpid(), self.number)
        return step

    def loss(self, batch: int) -> tuple[Tensor, int, dict[str, float]]:
        x = torch.linspace(-1, 1, 8)[:, None] + batch
        loss = (self.module(x) - 3 * x).square().sum()
        return loss * (float("nan") if batch == self.nan else 1.0), 8, {}


def fit(folder: Path, **task: Any) -> nn.Module:
    torch.manual_seed(0)
    module = nn.Linear(1, 1)
    groups = [{"params": list(module.parameters()), "lr": 1e-2}]
    train(Line(module, **task), module, groups=groups, steps=5, folder=folder, log_every=1, save_every=100)
    return module


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_the_step_and_says_so(tmp_path: Path, number: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(
        Stopped, match=rf"stopped by {signal.Signals(number).name} after step 3 of 5: its state"
    ) as ended:
        fit(tmp_path / "a", ask=2, number=number)
    assert ended.value.signal == number
    assert signal.getsignal(number) is before
    state = newest(tmp_path / "a")
    assert state is not None
    assert int(state.name) == 3
    gone_on, whole = fit(tmp_path / "a"), fit(tmp_path / "b")
    assert all(torch.equal(a, b) for a, b in zip(gone_on.parameters(), whole.parameters(), strict=True))
    steps = [json.loads(line)["step"] for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5]


def test_a_signal_in_the_last_step_ends_nothing(tmp_path: Path) -> None:
    fit(tmp_path, ask=4)
    state = newest(tmp_path)
    assert state is not None
    assert int(state.name) == 5


def test_the_second_signal_is_not_kept_back() -> None:
    with stop_request() as request:
        os.kill(os.getpid(), signal.SIGINT)
        assert request.signal == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_gradient_that_is_no_number_at_once(tmp_path: Path) -> None:
    said = "^the gradient of step 1 is nan: no state is saved yet, start anew, with a lower rate$"
    with pytest.raises(NotFiniteError, match=said):
        fit(tmp_path, nan=0)
    assert newest(tmp_path) is None
