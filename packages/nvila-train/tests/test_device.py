"""Steps on a device that is not there: whatever is left on the CPU is an error, and the gradients are the CPU's."""

import importlib.util
import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from nvila_model import NVILA
from nvila_train.conversation_task import ConversationTask
from nvila_train.data.conversations import ConversationDataset
from nvila_train.nano.objectives.alignment import AlignmentTask
from nvila_train.nano.objectives.answering import AnswerTask
from nvila_train.nano.objectives.patches import PatchTask
from nvila_train.nano.objectives.questions import QuestionTask
from nvila_train.nano.objectives.scene_reading import WrittenTask
from nvila_train.nano.random_weights import scaffolding
from nvila_train.nano.scene_stream import SceneStream
from nvila_train.recipe import Recipe
from nvila_train.recipe_errors import RecipeError
from nvila_train.trainee import Trainee, param_groups
from nvila_train.trainer import distributed
from nvila_train.trainer.blocks import prepared
from nvila_train.trainer.device import DeviceError, chosen, placed
from nvila_train.trainer.loop import train
from nvila_train.trainer.optim import Optimizers
from nvila_train.trainer.parallel import Loss, Stepper
from nvila_train.trainer.precision import computing
from torch import Tensor, nn

FILE = Path(__file__).parent / "elsewhere.py"
spec = importlib.util.spec_from_file_location("elsewhere", FILE)
assert spec is not None
assert spec.loader is not None
there = importlib.util.module_from_spec(spec)
spec.loader.exec_module(there)

STREAM = SceneStream(seed=4, mix={"shapes": 1.0, "clips": 1.0})
TASKS: dict[str, Callable[[Trainee], Any]] = {
    "patches": lambda trainee: PatchTask(trainee=trainee, stream=STREAM, samples=2),
    "written": lambda trainee: WrittenTask(trainee=trainee, stream=STREAM, samples=2),
    "alignment": lambda trainee: AlignmentTask(trainee=trainee, stream=STREAM, samples=2),
    "answers": lambda trainee: AnswerTask(trainee=trainee, stream=STREAM, samples=2),
    "questions": lambda trainee: QuestionTask(trainee=trainee, stream=STREAM, samples=2),
    "conversations": lambda trainee: ConversationTask(
        trainee=trainee, data=ConversationDataset(Path("examples/conversations.jsonl"), seed=1), samples=2
    ),
}
PARTS = {
    "patches": ("vision", "patches"),
    "written": ("llm", "written"),
    "alignment": ("vision", "projector"),
    "answers": ("vision", "projector", "llm"),
    "questions": ("vision", "projector", "llm"),
    "conversations": ("vision", "projector", "llm"),
}


def gradients(objective: str, *, far: bool) -> tuple[dict[str, float], list[Tensor]]:
    """What a step of two parts sums up, and the gradients that every weight was moved by."""
    torch.manual_seed(0)
    model = NVILA.from_pretrained("nano")
    trainee = Trainee(model, scaffolding(model))
    with there.elsewhere() if far else nullcontext(torch.device("cpu")) as device:
        trainee.to(device)
        optimizer = Optimizers(param_groups(trainee, dict.fromkeys(PARTS[objective], 1e-3)))
        task = TASKS[objective](trainee)
        loss = Loss(task, trainee)
        stepper = Stepper(task, loss, accumulate=2, summed=True, precision="fp32", device=device, seed=1)
        totals = stepper.gradients(0, optimizer.parameters)
        torch.nn.utils.clip_grad_norm_(optimizer.parameters, 1.0)
        optimizer.step()
    return totals, [there.plain(parameter.grad) for parameter in optimizer.parameters if parameter.grad is not None]


@pytest.mark.parametrize("objective", TASKS)
def test_a_step_elsewhere_is_the_step_here(objective: str):
    totals, expected = gradients(objective, far=False)
    found, moved = gradients(objective, far=True)
    assert found == pytest.approx(totals)
    assert len(moved) == len(expected)
    for mine, theirs in zip(moved, expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_stand_in_refuses_what_a_gpu_refuses():
    layer = nn.Linear(2, 2)
    with there.elsewhere() as device:
        layer.to(device)
        with pytest.raises(RuntimeError, match="met tensors of the CPU"):
            layer(torch.ones(1, 2))
        assert layer(torch.ones(1, 2, device=device)).device == device


def test_batches_are_moved_whole():
    model = NVILA.from_pretrained("nano")
    trainee = Trainee(model, scaffolding(model))
    batch = TASKS["answers"](trainee).batch(0, 0, 1)
    with there.elsewhere() as device:
        (moved,) = placed(batch, device)
        tensors = [*moved.input_ids, *moved.labels, *(image.tiles for image in moved.images)]
        assert {tensor.device.type for tensor in tensors} == {device.type}
        assert moved.images[0].plan == batch[0].images[0].plan
        mapping = {"a": (torch.ones(1), 2)}
        assert placed(mapping, device)["a"][0].device == device
    assert placed(batch, torch.device("cpu")) is batch


def test_the_device_of_a_process(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert chosen("auto") == torch.device("cpu")
    with pytest.raises(DeviceError, match="process 0 of this machine needs a CUDA device of its own, there are 0"):
        chosen("cuda")
    set_to: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", set_to.append)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert chosen("auto") == torch.device("cuda", 1)
    assert set_to == [1]
    assert not torch.backends.cudnn.allow_tf32
    assert chosen("cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(DeviceError, match="start at most 2 processes"):
        chosen("auto")
    assert distributed.backend(torch.device("cuda", 1)) == "cpu:gloo,cuda:nccl"
    assert distributed.backend(torch.device("cpu")) == "gloo"


def test_a_recipe_says_where(tmp_path: Path):
    shipped = Path(__file__).parent.parent / "src" / "nvila_train" / "recipes" / "nano.toml"
    assert Recipe.read(shipped).device == "auto"
    assert Recipe.read(shipped, device="cpu").device == "cpu"
    with pytest.raises(RecipeError, match="device: there is no 'tpu', did you mean 'cpu'"):
        Recipe.read(shipped, device="tpu")


@pytest.mark.filterwarnings(
    "ignore:.*CUDA is not available:UserWarning"
)  # torch switches itself off, after the setting
def test_products_are_cast_on_the_device_that_computes():
    with computing("bf16", "cpu"):
        assert torch.is_autocast_enabled("cpu")
        assert not torch.is_autocast_enabled("cuda")
    asked: list[str] = []

    class Noted:
        def __init__(self, kind: str, **_: Any) -> None:
            asked.append(kind)

        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "autocast", Noted)
        with computing("bf16", "cuda"):
            pass
    assert asked == ["cuda"]


class Dropped:
    """A task whose only noise is dropout."""

    def __init__(self, module: nn.Module, *, until: int) -> None:
        self.module, self.until = module, until

    def batch(self, step: int, rank: int, world: int) -> Tensor:
        if step == self.until:
            raise KeyboardInterrupt
        return torch.ones(8 // world, 6)

    def loss(self, batch: Tensor) -> tuple[Tensor, int, dict[str, float]]:
        out = self.module(batch)
        return out.square().sum(), len(out), {}


def dropped(folder: Path, *stops: int) -> list[float]:
    for stop in stops:
        torch.manual_seed(stop)  # a process that was started anew has other random numbers
        module = nn.Sequential(nn.Linear(6, 40), nn.Dropout(0.5), nn.Linear(40, 1))
        for parameter in module.parameters():
            nn.init.constant_(parameter, 0.1)
        groups = [{"params": list(module.parameters()), "lr": 1e-2}]
        try:
            train(Dropped(module, until=stop), module, groups=groups, steps=6, folder=folder, log_every=1, save_every=1,
                  seed=3)  # fmt: skip
        except KeyboardInterrupt:
            assert stop < 6
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_dropout_goes_on_where_it_stopped(tmp_path: Path):
    whole = dropped(tmp_path / "whole", 6)
    assert dropped(tmp_path / "parts", 2, 4, 6) == whole
    assert len(set(whole)) == 6


def test_blocks_are_computed_again_in_bfloat16_too():
    """The second pass runs when the loss is done, outside of what chose the number formats of the first."""
    model = NVILA.from_pretrained("nano").train()
    found: list[list[Tensor]] = []
    for how in ("none", "block", "selective"):
        model.zero_grad()
        with prepared(list(model.llm.layers), recompute=how), computing("bf16"):
            loss = model.llm(torch.ones(1, 7, 128)).sum()
        loss.backward()
        found.append([parameter.grad for parameter in model.llm.layers.parameters() if parameter.grad is not None])
    for other in found[1:]:
        for mine, theirs in zip(other, found[0], strict=True):
            torch.testing.assert_close(mine, theirs)
