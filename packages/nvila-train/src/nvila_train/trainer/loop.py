"""The training loop: one for the vision tower, the language model and the whole.

A ``Task`` says how to make a batch from its number and how to score it. Since a batch depends on its number
alone, a run that is stopped and resumed sees the very next batch and gives the same losses as one that never
stopped; what was logged after the last state is dropped and logged again.

The loss is a sum over labels divided by their number over all processes, so it does not depend on how
samples are spread over them (see ``parallel``).
"""

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nvila_train.fp8 import training
from nvila_train.trainer import distributed, log
from nvila_train.trainer.average import Average
from nvila_train.trainer.checkpoint import Progress, Saver, restore
from nvila_train.trainer.meter import Meter
from nvila_train.trainer.optim import Optimizers, clipped, rate_factor
from nvila_train.trainer.parallel import Spread, Task, device_of
from nvila_train.trainer.precision import Precision, PrecisionName
from nvila_train.trainer.stopping import Stopped, stop_request


class NotFiniteError(RuntimeError):
    """The loss became infinite or not a number."""


def train(
    task: Task,
    module: nn.Module,
    *,
    groups: Sequence[Mapping[str, Any]],
    steps: int,
    folder: Path,
    spread: Spread | None = None,
    clip: float = 1.0,
    floor: float = 0.0,
    ema: float | None = None,
    precision: Precision | PrecisionName = "fp32",
    save_every: int = 100,
    log_every: int = 10,
    resume: bool = True,
    stage: str = "",
    seed: int = 0,
    meter: Meter | None = None,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> None:
    """Train ``module`` for ``steps`` steps, on the device where its weights are; batches are moved there.

    Args:
        groups: parameter groups with their peak learning rates; parameters outside them are left alone.
        folder: where ``state/`` (to resume from) and ``log.jsonl`` go; the same disk for all processes.
        spread: over parts, processes and memory; by default whole batches, gradients summed over processes.
        clip: largest norm of the gradient.
        floor: share of the learning rate that is left at the end.
        ema: decay of an average of the weights that the module has in the end; None for the last weights.
        precision: of the matrix products. Weights, gradients and optimizer states have the format that the module's
            parameters have, float32 or bfloat16; see ``nvila_train.trainer.rounded`` for the latter.
        resume: go on from the state in the folder, if there is one.
        stage: name written into the log.
        seed: of random numbers in the network, as dropout draws them, and of rounding to bfloat16.
        meter: counts what is computed, for the log.
        report: called with every logged record.

    Raises:
        NotFiniteError: with the last state intact on disk.
        CheckpointError: a state cannot be written, or read; earlier ones are intact.
        LostProcessError: another process is gone; the last state is intact.
        Stopped: the run was asked to stop by Ctrl-C or SIGTERM; the state of its last step is saved.
    """
    named = {id(parameter): name for name, parameter in module.named_parameters()}
    listed = [{**group, "params": [named[id(p)] for p in group["params"]]} for group in groups]
    with (
        distributed.watched(),
        Saver(folder, device=device_of(module)) as saver,
        training(module, precision, recomputed=spread is not None and spread.recompute != "none") as histories,
        (spread or Spread()).over(task, module, precision=Precision.of(precision).name, seed=seed) as stepper,
        meter or Meter({}, device=device_of(module)) as meter,
        stop_request() as request,
    ):
        # sharding made new parameters, so they are looked up by name
        parameters = dict(module.named_parameters())
        found_groups = [{**group, "params": [parameters[n] for n in group["params"]]} for group in listed]
        optimizer = Optimizers(found_groups, seed=seed)
        trained = tuple(name for name, parameter in parameters.items() if parameter.requires_grad)
        average = Average(((name, parameters[name]) for name in trained), decay=ema) if ema else None
        weights = average.state if average else None
        start = restore(folder, module, optimizer, weights, histories) if resume else Progress()
        if distributed.rank() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            log.rewind(folder, start.step)
        sums = dict(start.sums)
        began = time.monotonic() - start.seconds
        module.train()
        for step in range(start.step, steps):
            optimizer.set_rates(rate_factor(step, steps, floor=floor))
            optimizer.zero_grad()
            found = stepper.gradients(step, optimizer.parameters)
            norm = whole(clipped(optimizer.parameters, clip))
            if not torch.isfinite(norm):
                last = saver.last
                kept = f"go on with --resume from step {last}" if last else "no state is saved yet, start anew"
                raise NotFiniteError(f"the gradient of step {step + 1} is {float(norm)}: {kept}, with a lower rate")
            optimizer.step()
            if average:
                average.update()
                if step + 1 == steps:
                    average.apply()
            sums = {name: sums.get(name, 0.0) + value for name, value in found.items()}
            seconds = time.monotonic() - began
            if (step + 1) % log_every == 0 or step + 1 == steps:
                record = line(stage, step + 1, sums, optimizer, seconds) | meter.read()
                if distributed.rank() == 0:
                    log.append(folder, record)
                    if report:
                        report(record)
                sums = {}
            asked = distributed.most(request.signal) if step + 1 < steps else 0
            if (step + 1) % save_every == 0 or step + 1 == steps or asked:
                done = Progress(step=step + 1, seconds=seconds, trained=trained, sums=sums)
                saver.save(module, optimizer, done, weights, histories)
            if asked:
                saver.wait()
                raise Stopped(
                    f"stopped by {signal.Signals(asked).name} after step {step + 1} of {steps}: its state is saved in "
                    f"{folder}, go on with --resume",
                    asked,
                )


def line(stage: str, step: int, sums: Mapping[str, float], optimizer: Optimizers, seconds: float) -> dict[str, Any]:
    """One line of the log; sums become means over the labels."""
    labels = sums["labels"]
    means = {name: round(sums[name] / max(1.0, labels), 5) for name in sorted(sums) if name != "labels"}
    rate = max(group["lr"] for group in optimizer.param_groups)
    return {"stage": stage, "step": step, **means, "rate": float(f"{rate:.3g}"), "seconds": round(seconds, 1)}


def whole(value: Tensor) -> Tensor:
    """A number that may be spread over processes, in each of them."""
    gather = getattr(value, "full_tensor", None)
    return gather() if gather else value
