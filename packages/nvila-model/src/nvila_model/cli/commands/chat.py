"""``nvila chat``: several turns about the same media."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nvila_model.cli import options
from nvila_model.cli.commands.ask import NANO
from nvila_model.cli.ending import CommandError, explain, say
from nvila_model.cli.progress import Stopwatch

if TYPE_CHECKING:
    from nvila_model.cli.media_arguments import VideoOptions
    from nvila_model.generation.sampling import Sampling
    from nvila_model.nvila import NVILA

HELP = "/image FILE, /video FILE: add media to the next question; /reset: forget all; /quit: leave"


def chat(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MEDIA]...", help="Images and videos of the first question.", show_default=False),
    ] = None,
    model: options.Model = None,
    adapter: options.Adapter = None,
    revision: options.Revision = None,
    offline: options.Offline = False,
    token: options.Token = None,
    device: options.Device = "cpu",
    dtype: options.DtypeOption = None,
    threads: options.Threads = None,
    accumulate: options.Accumulate = None,
    max_new_tokens: options.MaxNewTokens = None,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    top_k: options.TopK = 0,
    repetition_penalty: options.RepetitionPenalty = 1.0,
    seed: options.Seed = None,
    stop: options.Stop = None,
    frames: options.Frames = None,
    fps: options.Fps = None,
    allow_truncated: options.AllowTruncated = False,
    allow_private: options.AllowPrivate = False,
    limit: options.LimitWords = None,
    max_tiles: options.MaxTiles = None,
) -> None:
    """Talk about images and videos, one question a line, from a terminal or a pipe.

    /image FILE and /video FILE add media to the next question, /reset forgets everything, /quit ends. On a pipe,
    answers go to standard output one after the other; a bad line is reported and makes the exit code 2.
    """
    options.apply_limits(limit)
    source = options.Source(
        model=model, revision=revision, offline=offline, token=token,
        device=device, dtype=dtype, threads=threads, max_tiles=max_tiles, adapter=adapter,
        accumulate=accumulate,
    )  # fmt: skip
    watch = Stopwatch()
    with watch.stage("read", "opening the media"):
        from nvila_model.cli.media_arguments import VideoOptions, gather

        video = VideoOptions(frames=frames, fps=fps, allow_truncated=allow_truncated, allow_private=allow_private)
        refuse_standard_input(words or [])
        media = gather(words or [], video)
    with watch.stage("load", "starting torch"):
        drawing = options.sampling(
            max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k,
            repetition_penalty=repetition_penalty, seed=seed, stop=tuple(stop or ()),
        )  # fmt: skip
    loaded = source.open(watch)
    if model is None:
        say(NANO)
    talk = Talk(model=loaded, sampling=drawing, video=video, pending=list(media))
    failed = False
    for line in typed():
        if line == "/quit":
            break
        try:
            talk.take(line)
        except Exception as error:
            code, message = explain(error)
            if code != 2:
                raise
            failed = True
            say(message)
    if failed and not sys.stdin.isatty():
        raise typer.Exit(2)


@dataclass(kw_only=True)
class Talk:
    """A conversation in progress.

    Attributes:
        messages: all turns so far; empty at the start and after ``/reset``.
        pending: media that the next question will show.
    """

    model: NVILA
    sampling: Sampling
    video: VideoOptions
    messages: list[dict[str, Any]] = field(default_factory=list)
    pending: list[Any] = field(default_factory=list)

    def take(self, line: str) -> None:
        """One line: a command or a question. Raises: CommandError, MediaError, BudgetError; nothing is kept then."""
        if not line.startswith("/"):
            self.question(line)
            return
        command, _, rest = line.partition(" ")
        match command:
            case "/image" | "/video" if rest.strip():
                self.add(rest.strip())
            case "/reset":
                self.messages.clear()
                self.pending.clear()
            case "/help":
                say(HELP)
            case _:
                raise CommandError(f"{line!r} is not a command ({HELP})")

    def add(self, word: str) -> None:
        from nvila_model.cli.media_arguments import gather

        refuse_standard_input([word])
        self.pending += gather([word], self.video)

    def question(self, text: str) -> None:
        """Ask, show the answer, and remember both."""
        from nvila_model.cli.answering import aloud, tell

        turn = {"role": "user", "content": [*self.pending, text]}
        told = tell(self.model, [*self.messages, turn], self.sampling, watch=Stopwatch(), show=aloud)
        typer.echo()
        say(told.summary)
        self.messages += [turn, {"role": "assistant", "content": told.text}]
        self.pending = []


def typed() -> Iterator[str]:
    """Lines from the user that are not blank; with a prompt and line editing on a terminal."""
    from nvila_model.cli.media_arguments import typed_text

    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a byte that is not UTF-8 ends no chat
    if sys.stdin.isatty():
        import readline  # noqa: F401 - makes input() editable

        say(HELP)
        lines = iter(prompted, None)
    else:
        lines = iter(sys.stdin)
    for line in map(typed_text, lines):
        if line.strip():
            yield line.strip()


def prompted() -> str | None:
    try:
        return input("> ")
    except EOFError:
        print()
        return None


def refuse_standard_input(words: Sequence[str]) -> None:
    if "-" in words:
        raise CommandError("standard input holds the questions of a chat: give media as files or addresses")
