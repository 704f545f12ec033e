"""The training loop: one for the vision tower, the language model and the whole.

A ``Task`` says how to make a batch from its number and how to score it. Since a batch depends on its number
alone, a run that is stopped and resumed sees the very next batch and gives the same losses as one that never
stopped.

The loss is a sum over labels divided by their number over all processes, so it does not depend on how
samples are spread over them.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nvila_train import distributed
from nvila_train.optim import Optimizers, rate_factor
from nvila_train.precision import Precision, computing


class Task(Protocol):
    """What is trained on."""

    def batch(self, step: int, rank: int, world: int) -> Any:
        """This process's part of batch number ``step``."""
        ...

    def loss(self, batch: Any) -> tuple[Tensor, int, Mapping[str, float]]:
        """The summed loss, how many labels it sums over, and further sums to log as ``name: sum``."""
        ...


class NotFiniteError(RuntimeError):
    """The loss became infinite or not a number."""


def train(
    task: Task,
    module: nn.Module,
    *,
    groups: Sequence[Mapping[str, Any]],
    steps: int,
    folder: Path,
    clip: float = 1.0,
    floor: float = 0.0,
    precision: Precision = "fp32",
    save_every: int = 100,
    log_every: int = 10,
    resume: bool = True,
    stage: str = "",
    report: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Train ``module`` for ``steps`` steps.

    Args:
        groups: parameter groups with their peak learning rates; parameters outside them are left alone.
        folder: where ``state.pt`` (to resume from) and ``log.jsonl`` go.
        clip: largest norm of the gradient.
        floor: share of the learning rate that is left at the end.
        precision: of the matrix products; weights and gradients are float32.
        resume: go on from ``state.pt`` if there is one.
        stage: name written into the log.
        report: called with every logged record.

    Raises: NotFiniteError, with the last state intact on disk.
    """
    optimizer = Optimizers(groups)
    parameters = optimizer.parameters
    start, seconds = restore(folder, module, optimizer) if resume else (0, 0.0)
    sums: dict[str, float] = {}
    labels = 0
    began = time.monotonic() - seconds
    module.train()
    for step in range(start, steps):
        optimizer.set_rates(rate_factor(step, steps, floor=floor))
        optimizer.zero_grad()
        batch = task.batch(step, distributed.rank(), distributed.world())
        with computing(precision):
            loss, count, extra = task.loss(batch)
        loss.backward()
        total = int(distributed.sum_(torch.tensor([count], dtype=torch.int64)))
        distributed.sum_gradients(parameters)
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.div_(max(1, total))
        norm = nn.utils.clip_grad_norm_(parameters, clip)
        if not torch.isfinite(norm):
            raise NotFiniteError(
                f"the gradient of step {step} is {float(norm)}: resume from {folder} with a lower rate"
            )
        optimizer.step()
        labels += count
        for name, value in {"loss": float(loss.detach()), **extra}.items():
            sums[name] = sums.get(name, 0.0) + value
        if (step + 1) % log_every == 0 or step + 1 == steps:
            record = _record(stage, step + 1, sums, labels, optimizer, time.monotonic() - began)
            if distributed.rank() == 0:
                folder.mkdir(parents=True, exist_ok=True)
                with (folder / "log.jsonl").open("a") as log:
                    log.write(json.dumps(record) + "\n")
                if report:
                    report(record)
            sums, labels = {}, 0
        if distributed.rank() == 0 and ((step + 1) % save_every == 0 or step + 1 == steps):
            save(folder, module, optimizer, step + 1, time.monotonic() - began)


def _record(
    stage: str, step: int, sums: Mapping[str, float], labels: int, optimizer: Optimizers, seconds: float
) -> dict[str, Any]:
    """One line of the log; sums become means over the labels of all processes."""
    names = sorted(sums)
    values = torch.tensor([*(sums[name] for name in names), float(labels)], dtype=torch.float64)
    *totals, count = distributed.sum_(values).tolist()
    means = {name: round(value / max(1.0, count), 5) for name, value in zip(names, totals, strict=True)}
    rate = max(group["lr"] for group in optimizer.param_groups)
    return {"stage": stage, "step": step, **means, "rate": float(f"{rate:.3g}"), "seconds": round(seconds, 1)}


def save(folder: Path, module: nn.Module, optimizer: Optimizers, step: int, seconds: float) -> None:
    """Write the state so that a crash leaves the old one whole."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        "step": step,
        "seconds": seconds,
        "module": module.state_dict(),
        "trained": [name for name, parameter in module.named_parameters() if parameter.requires_grad],
        "optimizer": optimizer.state_dict(),
    }
    torch.save(state, folder / "state.pt.new")
    (folder / "state.pt.new").replace(folder / "state.pt")


def finished(folder: Path, module: nn.Module, *, steps: int) -> bool:
    """Whether the state in a folder has taken all its steps; if so the module gets the weights that it trained."""
    path = folder / "state.pt"
    if not path.exists():
        return False
    state = torch.load(path, weights_only=True)
    if state["step"] < steps:
        return False
    trained = {name: state["module"][name] for name in state["trained"]}
    module.load_state_dict(trained, strict=False)
    return True


def restore(folder: Path, module: nn.Module, optimizer: Optimizers) -> tuple[int, float]:
    """Read a state back; the number of steps taken and the seconds they took, zeros if there is none."""
    path = folder / "state.pt"
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    return int(state["step"]), float(state["seconds"])
