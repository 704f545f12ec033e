"""A process of a training run on a whole NVILA; run by ``test_whole_model`` with its settings."""

from pathlib import Path

import torch
import torch.distributed as dist
from nvila_model import NVILA
from nvila_train.nano.objectives.answering import AnswerTask
from nvila_train.nano.objectives.patches import PatchTask
from nvila_train.nano.random_weights import scaffolding
from nvila_train.nano.scene_stream import SceneStream
from nvila_train.trainee import Trainee, param_groups
from nvila_train.trainer import loop
from nvila_train.trainer.parallel import Spread


def run(
    *, folder: str, rank: int, world: int, kind: str, accumulate: int, steps: int, objective: str = "answers"
) -> None:
    """Nano on drawn pictures and clips, four a step; ``patches`` trains its tower under new heads."""
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}.store", rank=rank, world_size=world)
    torch.manual_seed(0)
    model = NVILA.from_pretrained("nano", dtype=torch.float32)
    trainee = Trainee(model, scaffolding(model) if objective == "patches" else None)
    stream = SceneStream(seed=7, mix={"shapes": 2.0, "clips": 1.0})
    layers = tuple(trainee.model.llm.layers)
    task = (PatchTask if objective == "patches" else AnswerTask)(trainee=trainee, stream=stream, samples=4)
    others = {"patches": 1e-3} if objective == "patches" else {"projector": 3e-4, "llm": 3e-4}
    loop.train(
        task,
        trainee,
        groups=param_groups(trainee, {"vision": 1e-4, **others}),
        steps=steps,
        folder=Path(folder),
        spread=Spread(parallel=kind, accumulate=accumulate, recompute="block", blocks=layers, shards=layers),  # pyright: ignore
        log_every=1,
    )
    whole = {name: loop.whole(value) for name, value in trainee.model.state_dict().items()}
    if rank == 0:
        torch.save(whole, f"{folder}.weights")
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    run(**SETTINGS)  # type: ignore[name-defined]  # noqa: F821
