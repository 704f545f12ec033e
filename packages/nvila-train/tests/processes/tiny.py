"""A process of a training run on a network of a few hundred numbers; run by ``test_parallel`` with its settings.

The samples are unlike each other on purpose: one to five labels, and a picture in every third, so that processes differ
in how many labels they have and in which weights they use.
"""

import os
import signal
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from nvila_train.trainer import loop
from nvila_train.trainer.parallel import Spread
from torch import Tensor, nn

SAMPLES = 8


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.silu(self.up(x)))


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vision, self.embed, self.head = nn.Linear(6, 8), nn.Linear(4, 8), nn.Linear(8, 3)
        self.frozen = nn.Linear(8, 8).requires_grad_(False)
        self.layers = nn.ModuleList(Block(8) for _ in range(2))

    def forward(self, samples: list[tuple[Tensor, Tensor, Tensor | None]]) -> tuple[Tensor, int]:
        rows = [self.embed(x) if p is None else self.embed(x) + self.vision(p) for x, _, p in samples]
        hidden = self.frozen(torch.cat(rows))
        for layer in self.layers:
            hidden = layer(hidden)
        labels = torch.cat([y for _, y, _ in samples])
        scores = self.head(hidden)
        scores = scores.float() if scores.dtype == torch.bfloat16 else scores
        return F.cross_entropy(scores, labels, reduction="sum"), len(labels)


def sample(number: int) -> tuple[Tensor, Tensor, Tensor | None]:
    generator = torch.Generator().manual_seed(number)
    count = 1 + number % 5
    x, y = torch.randn(count, 4, generator=generator), torch.randint(0, 3, (count,), generator=generator)
    return x, y, torch.randn(6, generator=generator) if number % 3 == 0 else None


class Samples:
    def __init__(self, module: Tiny, *, ends: dict[int, int]) -> None:
        self.module, self.ends = module, ends

    def batch(self, step: int, rank: int, world: int) -> Any:
        if self.ends.get(dist.get_rank() if dist.is_initialized() else 0) == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return [sample(number) for number in range(step * SAMPLES + rank, (step + 1) * SAMPLES, world)]

    def loss(self, batch: Any) -> tuple[Tensor, int, dict[str, float]]:
        rows = [[each for each in batch if each[2] is None], [each for each in batch if each[2] is not None]]
        found = [self.module(row) for row in rows if row]  # one or two runs of the blocks
        pictures = float(sum(p is not None for _, _, p in batch))
        return torch.stack([loss for loss, _ in found]).sum(), sum(count for _, count in found), {"pictures": pictures}


def run(
    *,
    folder: str,
    rank: int = 0,
    world: int = 1,
    steps: int = 6,
    ends: dict[int, int] | None = None,
    kind: str = "none",
    accumulate: int = 1,
    save_every: int = 100,
    log_every: int = 1,
    recompute: Any = "none",
    ema: float | None = None,
    precision: Any = "fp32",
    weights: torch.dtype = torch.float32,
) -> None:
    torch.set_num_threads(1)
    place = Path(folder)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{place}.store", rank=rank, world_size=world)
    module = Tiny().to(weights)
    blocks = list(module.layers)
    spread: Any = Spread(parallel=kind, accumulate=accumulate, recompute=recompute, blocks=blocks, shards=blocks)  # pyright: ignore
    groups = [
        {"params": [p for name, p in module.named_parameters() if name.startswith("vision")], "lr": 3e-3},
        {"params": [p for n, p in module.named_parameters() if not n.startswith(("vision", "frozen"))], "lr": 1e-2},
    ]
    try:
        loop.train(
            Samples(module, ends=ends or {}), module, groups=groups, steps=steps, folder=place, spread=spread,
            save_every=save_every, log_every=log_every, ema=ema,
            precision=precision,
        )  # fmt: skip
    except RuntimeError as error:
        Path(f"{folder}.error.{rank}").write_text(f"{type(error).__name__}: {error}")
        os._exit(1)
    whole = {name: loop.whole(value) for name, value in module.state_dict().items()}
    if rank == 0:
        torch.save(whole, f"{folder}.weights")
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    run(**SETTINGS)  # type: ignore[name-defined]  # noqa: F821
