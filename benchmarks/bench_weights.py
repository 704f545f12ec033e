"""What becomes of small steps: a language model from nothing with weights in float32, and in bfloat16 two ways.

    uv run python benchmarks/bench_weights.py [STEPS]   # three minutes on one core with the default of 150

The `written` stage of nano (scenes that are written out, four a step) with products in bfloat16 in all three runs, the
same batches and rates: weights in float32 by torch's fused AdamW, in bfloat16 by torch's AdamW, which rounds to the
nearest number, and in bfloat16 rounded at random, as ``weights = "bf16"`` does. Then one optimizer step on 16 million
weights, the best of five, the ways taken in turn.

Expect losses of 2.83, 2.97 and 2.83, and steps of the optimizer that take 1x, 1.2x and 11x (one core of an EPYC).
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from nvila_model import NVILA
from nvila_train.nano.objectives.scene_reading import WrittenTask
from nvila_train.nano.random_weights import new_trainee
from nvila_train.nano.scene_stream import SceneStream
from nvila_train.recipe import Recipe
from nvila_train.trainee import Trainee, param_groups
from nvila_train.trainer import log, optim
from nvila_train.trainer.loop import train
from nvila_train.trainer.rounded import RoundedAdamW
from torch import nn

SIZE = 16_000_000
RATES = {"llm": 3e-4, "written": 3e-4}
RECIPE = Path(optim.__file__).parent.parent / "recipes" / "nano.toml"


class Plain(torch.optim.AdamW):
    """torch's AdamW in the place of ours."""

    def __init__(self, groups: Any, *, seed: int, betas: tuple[float, float], eps: float) -> None:
        super().__init__(groups, betas=betas, eps=eps, weight_decay=0.0, fused=True)


def trainee(weights: torch.dtype) -> Trainee:
    """Nano with new weights, in a format."""
    recipe = Recipe.read(RECIPE)
    tokenizer = NVILA.from_pretrained("nano").needed_processor().tokenizer
    return new_trainee(recipe.config(rows=1), tokenizer, seed=1).to(weights)


def learn(weights: torch.dtype, optimizer: type, steps: int) -> float:
    """The mean loss of the last third."""
    optim.RoundedAdamW = optimizer  # pyright: ignore[reportPrivateImportUsage]
    model = trainee(weights)
    task = WrittenTask(trainee=model, stream=SceneStream(seed=5, mix={"shapes": 1.0}), samples=4)
    with tempfile.TemporaryDirectory() as folder:
        train(task, model, groups=param_groups(model, RATES), steps=steps, folder=Path(folder), precision="bf16",
              log_every=1, save_every=steps)  # fmt: skip
        losses = [record["loss"] for record in log.records(Path(folder))]
    late = losses[-len(losses) // 3 :]
    return sum(late) / len(late)


def stepper(weights: torch.dtype, kind: type) -> torch.optim.Optimizer:
    """An optimizer of many weights that has taken a step."""
    parameter = nn.Parameter(torch.randn(SIZE // 1000, 1000).to(weights))
    parameter.grad = torch.randn_like(parameter)
    optimizer = kind([{"params": [parameter], "lr": 1e-5}], seed=1, betas=optim.BETAS, eps=optim.EPS)
    optimizer.step()
    return optimizer


def seconds(optimizer: torch.optim.Optimizer) -> float:
    start = time.perf_counter()
    optimizer.step()
    return time.perf_counter() - start


WAYS: dict[str, tuple[torch.dtype, type, int]] = {
    "float32": (torch.float32, Plain, 16),
    "bfloat16, to the nearest": (torch.bfloat16, Plain, 8),
    "bfloat16, at random": (torch.bfloat16, RoundedAdamW, 8),
}

torch.set_num_threads(1)
steps = int(sys.argv[1]) if len(sys.argv) > 1 else 150
steppers = [stepper(weights, kind) for weights, kind, _ in WAYS.values()]
rounds = [[seconds(each) for each in steppers] for _ in range(5)]
times = [min(column) for column in zip(*rounds, strict=True)]
print("| weights | bytes a weight | loss | a step of the optimizer |\n|---|---|---|---|", flush=True)
for (name, (weights, kind, size)), taken in zip(WAYS.items(), times, strict=True):
    print(f"| {name} | {size} | {learn(weights, kind, steps):.3f} | {taken / times[0]:.1f}x |", flush=True)
