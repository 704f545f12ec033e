"""A process of a recipe's run, with its settings; it may be told to kill itself at a step of a stage."""

import os
import signal
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from nvila_train import run as runner
from nvila_train.recipe import Recipe


class Ending:
    """A task that ends its process before a step."""

    def __init__(self, task: Any, *, at: int) -> None:
        self.task, self.at = task, at

    def batch(self, step: int, rank: int, world: int) -> Any:
        if step == self.at:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.task.batch(step, rank, world)

    def loss(self, batch: Any) -> Any:
        return self.task.loss(batch)


def run(*, folder: str, recipe: str, rank: int = 0, world: int = 1, ends: tuple[str, int] | None = None) -> None:
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}.store", rank=rank, world_size=world)
    whole = runner.task_of

    def task_of(stage: Any, trainee: Any, *, seed: int) -> Any:
        task = whole(stage, trainee, seed=seed)
        return Ending(task, at=ends[1]) if ends and ends[0] == stage.name else task

    runner.task_of = task_of
    runner.run(Recipe.read(recipe), Path(folder))
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    run(**SETTINGS)  # type: ignore[name-defined]  # noqa: F821
