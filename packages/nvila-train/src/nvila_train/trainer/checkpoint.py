"""The state of a stage on disk: written beside the training, whole or not there, readable by any number of processes.

    <stage>/state/00000100/     what ``torch.distributed.checkpoint`` writes after 100 steps

Every process writes its own share from a copy, in a thread, while the next steps run. The first one writes
``.metadata`` when all have finished, so a folder without that file is not a state: it is what a killed run left, and is
never read. Only then are older states removed. Tensors are named, not numbered, and cut anew on reading: a run on four
processes goes on with one or two, and the other way round.

A run of an earlier version left ``state.pt``; it is read too, where nothing newer is there.
"""

import json
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, wait
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from nvila_kernels import DelayedScale
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from nvila_train.trainer import distributed
from nvila_train.trainer.optim import Optimizers

LAST_WORDS = 60
"""Seconds that a run which ends with an error gives to the state that it is writing."""


class CheckpointError(RuntimeError):
    """A state that could not be written or read; earlier ones are whole."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a stage is.

    Attributes:
        step: steps taken.
        seconds: that they took.
        trained: names of the parameters that the stage trains.
        sums: what was summed up since the last line of the log, over all processes.
    """

    step: int = 0
    seconds: float = 0.0
    trained: tuple[str, ...] = ()
    sums: Mapping[str, float] = field(default_factory=dict)


class Saver:
    """Writes the states of one stage, one at a time.

    A context: leaving it without an error waits for the state that is being written.

    Args:
        device: of what is trained, where processes talk about it.
    """

    def __init__(self, folder: Path, *, device: torch.device | None = None) -> None:
        self.folder = folder
        self.device = device
        self._stack = ExitStack()
        self._pending: tuple[int, Future[Any]] | None = None
        self._group: Any = None

    @property
    def last(self) -> int | None:
        """The step of the last state, also of one that is still being written; None if there is none."""
        if self._pending is not None:
            return self._pending[0]
        whole = newest(self.folder)
        return int(whole.name) if whole else None

    def __enter__(self) -> "Saver":
        self._stack.enter_context(distributed.group(self.device))
        if distributed.world() > 1:  # its thread must not mix its messages with those of training
            self._group = dist.new_group(backend="gloo", timeout=distributed.PATIENCE)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._stack:
            if kind is None:
                self.wait()
            elif self._pending:
                # what is being written is good, but the error that came first is the one to tell
                wait([self._pending[1]], timeout=LAST_WORDS)

    def save(
        self,
        module: nn.Module,
        optimizer: Optimizers,
        progress: Progress,
        average: Mapping[str, Tensor] | None = None,
        histories: Mapping[str, DelayedScale] | None = None,
    ) -> None:
        """Copy the state and begin to write it. Raises: CheckpointError if the one before could not be written."""
        self.wait()
        state = {
            "module": module.state_dict(),
            "optimizer": optimizer_state(module, optimizer),
            "average": dict(average or {}),
            "histories": {name: scale.history for name, scale in (histories or {}).items() if scale.begun},
            "progress": json.dumps(asdict(progress)),
        }
        writer = FileSystemWriter(self.folder / "state" / f"{progress.step:08d}")
        written = async_save(state, storage_writer=writer, process_group=self._group)
        assert isinstance(written, Future)
        self._pending = progress.step, written

    def wait(self) -> None:
        """Wait until the last state is on the disk, then remove older ones. Raises: CheckpointError."""
        if self._pending is None:
            return
        (step, written), self._pending = self._pending, None
        path = self.folder / "state" / f"{step:08d}"
        try:
            written.result()
        except (CheckpointException, OSError, RuntimeError) as error:
            if distributed.rank() == 0:
                shutil.rmtree(path, ignore_errors=True)
            whole = newest(self.folder)
            kept = f"the state of step {int(whole.name)} is whole" if whole else "there is no earlier state"
            free = shutil.disk_usage(self.folder).free / 1e9  # torch's writer seldom says that a disk is full
            raise CheckpointError(
                f"cannot write the state of step {step} to {path} ({cause(error)}; {free:.1f} GB are free); {kept}: "
                "make room or choose another --out, then go on with --resume"
            ) from None
        if distributed.rank() == 0:
            for other in path.parent.iterdir():
                if other != path:
                    shutil.rmtree(other, ignore_errors=True)


def restore(
    folder: Path,
    module: nn.Module,
    optimizer: Optimizers,
    average: Mapping[str, Tensor] | None = None,
    histories: Mapping[str, DelayedScale] | None = None,
) -> Progress:
    """Read the newest state into a module and its optimizer; nothing happens if there is none.

    Args:
        average: averaged weights by name, read in place if the state has them.
        histories: of delayed scaling, by name; those of the first process, if the state has them.

    Raises: CheckpointError for a state that is damaged or of another model.
    """
    path, old = distributed.agreed((newest(folder), older(folder)))
    if path is None and old is None:
        return Progress()
    if path is None or (old is not None and old["step"] > int(path.name)):
        assert old is not None
        module.load_state_dict(old["module"])
        optimizer.load_state_dict(old["optimizer"])
        return Progress(step=int(old["step"]), seconds=float(old["seconds"]))
    state = {
        "module": module.state_dict(),
        "optimizer": optimizer_template(path, module),
        "progress": "",
    }
    if average and has(path, "average."):
        state["average"] = dict(average)
    seen = {name.removeprefix("histories."): entry.size for name, entry in entries(path).items()
            if name.startswith("histories.") and name.removeprefix("histories.") in (histories or {})}  # fmt: skip
    state["histories"] = {name: torch.empty(size) for name, size in seen.items()}
    read(path, state)
    for name, value in state["histories"].items():
        (histories or {})[name].load_history(value)
    optimizer.place(dict(module.named_parameters()), state["optimizer"])
    return Progress(**json.loads(state["progress"]))


def finished(folder: Path, module: nn.Module, *, steps: int) -> bool:
    """Whether the state in a folder has taken all its steps; if so the module gets the weights that it trained.

    Raises: CheckpointError for a state that is damaged or of another model.
    """
    path, old = distributed.agreed((newest(folder), older(folder)))
    if path is not None and int(path.name) >= steps:
        said = {"progress": ""}
        read(path, said)
        weights = module.state_dict()
        read(path, {"module": {name: weights[name] for name in json.loads(said["progress"])["trained"]}})
        return True
    if old is None or old["step"] < steps:
        return False
    module.load_state_dict({name: old["module"][name] for name in old["trained"]}, strict=False)
    return True


def newest(folder: Path) -> Path | None:
    """The last whole state in a stage's folder."""
    whole = [path for path in (folder / "state").glob("*") if (path / ".metadata").is_file()]
    return max(whole, key=lambda path: int(path.name), default=None)


def older(folder: Path) -> dict[str, Any] | None:
    """The state that an earlier version left."""
    path = folder / "state.pt"
    return torch.load(path, weights_only=True) if path.is_file() else None


def read(path: Path, state: dict[str, Any]) -> None:
    """Read the named parts of a state, tensors in place. Raises: CheckpointError."""
    try:
        with distributed.group():
            load(state, checkpoint_id=path)
    except (CheckpointException, OSError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({cause(error)}): use the recipe it was made with, or remove it to begin anew"
        ) from None


def optimizer_state(module: nn.Module, optimizer: Optimizers) -> dict[str, Tensor]:
    """What the optimizers remember, as ``<parameter>.<what>``."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return {
        f"{names[id(parameter)]}.{what}": value
        for member in optimizer.members
        for parameter, values in member.state.items()
        for what, value in values.items()
    }


def optimizer_template(path: Path, module: nn.Module) -> dict[str, Tensor]:
    """Tensors of the kind that ``optimizer_state`` gave, cut as the module's parameters are now."""
    parameters = dict(module.named_parameters())
    template: dict[str, Tensor] = {}
    for name, entry in entries(path).items():
        parameter = parameters.get(name.removeprefix("optimizer.").rpartition(".")[0])
        if not name.startswith("optimizer.") or parameter is None:
            continue
        alike = entry.size == parameter.shape
        template[name.removeprefix("optimizer.")] = (
            torch.zeros_like(parameter) if alike else torch.zeros(entry.size, dtype=entry.properties.dtype)
        )
    return template


def has(path: Path, prefix: str) -> bool:
    """Whether a state has an entry whose name begins so."""
    return any(name.startswith(prefix) for name in entries(path))


def entries(path: Path) -> dict[str, Any]:
    """Names of all entries of a state, with their shapes and dtypes."""
    return dict(FileSystemReader(path).read_metadata().state_dict_metadata)


def cause(error: BaseException) -> str:
    """The first reason of an error that torch collected from all processes."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    return f"{type(error).__name__}: {error}".splitlines()[0]
