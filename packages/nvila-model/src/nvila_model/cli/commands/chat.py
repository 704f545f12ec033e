"""``nvila chat``: several turns about the same media."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nvila_model.cli.commands.ask import NANO
from nvila_model.cli.ending import CommandError, explain, print_note
from nvila_model.cli.progress import Stopwatch
from nvila_model.cli.request import Request, takes_request

if TYPE_CHECKING:
    from nvila_model.cli.media_arguments import VideoOptions
    from nvila_model.generation.sampling import Sampling
    from nvila_model.nvila import NVILA

HELP = "/image FILE, /video FILE: add media to the next question; /reset: forget all; /quit: leave"


@takes_request
def chat(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MEDIA]...", help="Images and videos of the first question.", show_default=False),
    ] = None,
    *,
    request: Request,
) -> None:
    """Talk about images and videos, one question a line, from a terminal or a pipe.

    /image FILE and /video FILE add media to the next question, /reset forgets everything, /quit ends. On a pipe,
    answers go to standard output one after the other; a bad line is reported and makes the exit code 2.
    """
    watch = Stopwatch()
    with watch.stage("read", "opening the media"):
        from nvila_model.cli.media_arguments import open_media

        refuse_standard_input(words or [])
        media = open_media(words or [], request.video)
    with watch.stage("load", "starting torch"):
        sampling = request.sampling()
    model = request.source.open(watch)
    if request.model is None:
        print_note(NANO)
    session = ChatSession(model=model, sampling=sampling, video=request.video, pending=list(media))
    failed = False
    for line in read_lines():
        if line == "/quit":
            break
        try:
            session.handle(line)
        except Exception as error:
            code, message = explain(error)
            if code != 2:
                raise
            failed = True
            print_note(message)
    if failed and not sys.stdin.isatty():
        raise typer.Exit(2)


@dataclass(kw_only=True)
class ChatSession:
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

    def handle(self, line: str) -> None:
        """One line: a command or a question. Raises: CommandError, MediaError, BudgetError; nothing is kept then."""
        if not line.startswith("/"):
            self.ask(line)
            return
        command, _, rest = line.partition(" ")
        match command:
            case "/image" | "/video" if rest.strip():
                self.add(rest.strip())
            case "/reset":
                self.messages.clear()
                self.pending.clear()
            case "/help":
                print_note(HELP)
            case _:
                raise CommandError(f"{line!r} is not a command ({HELP})")

    def add(self, word: str) -> None:
        from nvila_model.cli.media_arguments import open_media

        refuse_standard_input([word])
        self.pending += open_media([word], self.video)

    def ask(self, text: str) -> None:
        """Ask, show the answer, and remember both."""
        from nvila_model.cli.answering import answer, print_piece

        turn = {"role": "user", "content": [*self.pending, text]}
        answered = answer(self.model, [*self.messages, turn], self.sampling, watch=Stopwatch(), show=print_piece)
        typer.echo()
        print_note(answered.summary)
        self.messages += [turn, {"role": "assistant", "content": answered.text}]
        self.pending = []


def read_lines() -> Iterator[str]:
    """Lines from the user that are not blank; with a prompt and line editing on a terminal."""
    from nvila_model.cli.media_arguments import typed_text

    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # a byte that is not UTF-8 ends no chat
    if sys.stdin.isatty():
        import readline  # noqa: F401 - makes input() editable

        print_note(HELP)
        lines = iter(read_prompted, None)
    else:
        lines = iter(sys.stdin)
    for line in map(typed_text, lines):
        if line.strip():
            yield line.strip()


def read_prompted() -> str | None:
    try:
        return input("> ")
    except EOFError:
        print()
        return None


def refuse_standard_input(words: Sequence[str]) -> None:
    if "-" in words:
        raise CommandError("standard input holds the questions of a chat: give media as files or addresses")
