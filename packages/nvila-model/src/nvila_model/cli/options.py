"""Options that several commands share, and what becomes of them."""

from __future__ import annotations

import logging
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nvila_model.cli.ending import CommandError

if TYPE_CHECKING:
    import torch

    from nvila_model.cli.progress import Stopwatch
    from nvila_model.generation.sampling import Sampling
    from nvila_model.nvila import NVILA


class Dtype(StrEnum):
    """Number formats of the weights."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class AccumulateType(StrEnum):
    """Number formats of the sums in 4-bit products."""

    float32 = "float32"
    float16 = "float16"


MODEL = "Model"
ANSWER = "Answer"
MEDIA = "Media"

Model = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", help="nano, a folder, or a hub repository owner/name; nano by default.", rich_help_panel=MODEL
    ),
]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of the hub repository.", rich_help_panel=MODEL)
]
Adapter = Annotated[
    str | None,
    typer.Option(help="A LoRA adapter in PEFT's layout: a folder, or a hub repository.", rich_help_panel=MODEL),
]
Offline = Annotated[bool, typer.Option("--offline", help="Use only what was fetched before.", rich_help_panel=MODEL)]
Token = Annotated[
    str | None,
    typer.Option(envvar="HF_TOKEN", help="Hub token for repositories that need one.", rich_help_panel=MODEL),
]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps, ...", rich_help_panel=MODEL)]
DtypeOption = Annotated[
    Dtype | None,
    typer.Option(
        "--dtype", help="Of the weights; by default the checkpoint's, float32 on a CPU.", rich_help_panel=MODEL
    ),
]
Accumulate = Annotated[
    AccumulateType | None,
    typer.Option(
        help="Of 4-bit products on a GPU; float16 is for --dtype float16 only. By default the checkpoint's.",
        rich_help_panel=MODEL,
    ),
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads; by default one a core.", rich_help_panel=MODEL)]

MaxNewTokens = Annotated[
    int | None,
    typer.Option(
        min=1, help="Longest answer, in tokens; by default 512, or what the context leaves.", rich_help_panel=ANSWER
    ),
]
Temperature = Annotated[float, typer.Option(min=0, help="0 always takes the best token.", rich_help_panel=ANSWER)]
TopP = Annotated[
    float, typer.Option(min=0, max=1, help="Draw from the smallest set of this probability.", rich_help_panel=ANSWER)
]
TopK = Annotated[int, typer.Option(min=0, help="Draw from so many best tokens; 0 from all.", rich_help_panel=ANSWER)]
RepetitionPenalty = Annotated[
    float,
    typer.Option(min=0, help="Above 1 makes tokens of the answer less likely to come again.", rich_help_panel=ANSWER),
]
Seed = Annotated[int | None, typer.Option(help="Makes a draw repeatable.", rich_help_panel=ANSWER)]
Stop = Annotated[list[str] | None, typer.Option(help="End before this text; may be repeated.", rich_help_panel=ANSWER)]

Frames = Annotated[
    int | None, typer.Option(min=1, help="Frames of a video; by default the model's.", rich_help_panel=MEDIA)
]
Fps = Annotated[
    float | None, typer.Option(min=0, help="Frames a second of a video, at most --frames.", rich_help_panel=MEDIA)
]
MaxTiles = Annotated[
    int | None, typer.Option(min=1, help="Tiles of an image at its largest scale.", rich_help_panel=MEDIA)
]
AllowTruncated = Annotated[
    bool,
    typer.Option("--allow-truncated", help="Use what can be read of a video that is cut short.", rich_help_panel=MEDIA),
]
AllowPrivate = Annotated[
    bool,
    typer.Option(
        "--allow-private", help="Read from addresses of this machine and private networks.", rich_help_panel=MEDIA
    ),
]
LimitWords = Annotated[
    list[str] | None,
    typer.Option(
        "--limit", metavar="NAME=VALUE", help="What one input may cost (pixels=..., see docs); may be repeated.",
        rich_help_panel=MEDIA,
    ),
]  # fmt: skip
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]


@dataclass(frozen=True, kw_only=True)
class Source:
    """Which model to load, and how."""

    model: str | None
    revision: str | None
    offline: bool
    token: str | None
    device: str
    dtype: Dtype | None
    threads: int | None
    max_tiles: int | None
    adapter: str | None = None
    accumulate: AccumulateType | None = None

    @property
    def name(self) -> str:
        return self.model or "nano"

    def open(self, watch: Stopwatch) -> NVILA:
        """The model, fetched if need be; its stages are ``fetch`` and ``load``.

        Raises: CommandError for a device that is not here, CheckpointError.
        """
        with watch.stage("load", "starting torch"):
            import nvila_model.checkpoint  # noqa: F401
        with watch.stage("fetch"):  # the hub shows progress of its own
            folder = self._fetch()
        with watch.stage("load", f"loading {self.name}"):
            model = self._load(folder)
        with watch.stage("load", "choosing kernels"):
            model.optimize()
        return model

    def _fetch(self) -> Path:
        from nvila_model.checkpoint.hub import is_remote, locate

        if is_remote(self.name):
            from huggingface_hub.utils import disable_progress_bars

            logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
            if not sys.stderr.isatty():
                disable_progress_bars()
        return locate(self.name, revision=self.revision, offline=self.offline, token=self.token)

    def _load(self, folder: Path) -> NVILA:
        import torch

        from nvila_model.checkpoint import CheckpointError
        from nvila_model.nvila import NVILA

        if self.threads:
            torch.set_num_threads(self.threads)
        overrides: dict[str, Any] = {} if self.max_tiles is None else {"max_tiles": self.max_tiles}
        device = available(self.device)
        try:
            return NVILA.from_pretrained(
                folder,
                dtype=getattr(torch, self.dtype.value) if self.dtype else None,
                device=device,
                config_overrides=overrides,
                offline=self.offline,
                token=self.token,
                adapter=self.adapter,
                accumulate=self.accumulate.value if self.accumulate else None,
                optimize=False,  # a stage of its own
                stored_vocabulary=True,
            )
        except ValueError as error:
            if type(error).__module__.startswith("nvila_"):
                raise
            raise CheckpointError(f"{self.name}: {error}") from None


def available(name: str) -> torch.device:
    """A device of this machine. Raises: CommandError if there is none of that name."""
    import torch

    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise CommandError(f"device {name!r} cannot be used ({reason}): use --device cpu") from None
    return device


def media_limits(words: list[str] | None) -> AbstractContextManager[object]:
    """Limits on media while a command runs. Raises: LimitError."""
    if not words:
        return nullcontext()
    from nvila_model.inputs.limits import Limits, current_limits, use_limits

    return use_limits(Limits.from_words(words, base=current_limits()))


def sampling(**options: Any) -> Sampling:
    """How answers are drawn. Raises: CommandError for a number out of its range."""
    from nvila_model.generation.sampling import Sampling

    try:
        return Sampling(**options)
    except ValueError as error:
        raise CommandError(str(error)) from None
