"""What ``nvila-train run`` shows while it runs: one line that moves, or plain lines where there is no terminal."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nvila_train.recipe import Recipe
from nvila_train.recipe_errors import RecipeError

Report = Callable[[dict[str, Any]], None]


class Writer(Protocol):
    """As far as TensorBoard's is used."""

    def add_scalar(self, tag: str, value: float, step: int, /) -> None: ...
    def flush(self) -> None: ...


def numbers_of(record: Mapping[str, Any]) -> str:
    """The numbers of a record: loss first, then what else is learnt, then what it costs."""
    words = [f"loss {record['loss']:.4g}"]
    known = ("stage", "step", "loss", "seconds", "tokens_per_second", "mfu", "memory")
    words += [f"{name} {value:g}" for name, value in record.items() if name not in known]
    if "tokens_per_second" in record:
        words.append(f"{record['tokens_per_second']:,.0f} tokens/s")
    if "mfu" in record:
        words.append(f"MFU {record['mfu']:.0%}")
    if "memory" in record:
        words.append(f"{record['memory']:.1f} GiB")
    return ", ".join(words)


class Display:
    """Shows records; a context."""

    def __init__(self, console: Console, recipe: Recipe) -> None:
        self.console = console
        self.steps = {stage.name: stage.steps for stage in recipe.stage}
        columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn())
        self.progress = Progress(*columns, TextColumn("{task.fields[numbers]}"), console=console)
        self.task: tuple[str, Any] | None = None

    def __enter__(self) -> "Display":
        if self.console.is_terminal:
            self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self.progress.stop()

    def __call__(self, record: dict[str, Any]) -> None:
        stage, step = record["stage"], record["step"]
        if not self.console.is_terminal:
            line = f"{stage} {step}/{self.steps[stage]}: {numbers_of(record)} ({record['seconds']:.0f} s)"
            self.console.print(line, highlight=False, soft_wrap=True)
            return
        if self.task is None or self.task[0] != stage:
            self.task = stage, self.progress.add_task(stage, total=self.steps[stage], numbers="")
        self.progress.update(self.task[1], completed=step, numbers=numbers_of(record))


def tensorboard(folder: Path) -> Report:
    """Write records for TensorBoard, a curve for each number of each stage. Raises: RecipeError without the extra."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise RecipeError("--tensorboard needs the extra: pip install 'nvila-train[tensorboard]'") from None
    writer: Writer = SummaryWriter(str(folder))

    def write(record: dict[str, Any]) -> None:
        for name, value in record.items():
            if name not in ("stage", "step"):
                writer.add_scalar(f"{record['stage']}/{name}", value, record["step"])
        writer.flush()

    return write
