"""``nvila ask MEDIA... QUESTION``."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from nvila_model.cli import options
from nvila_model.cli.ending import INTERRUPTED, print_note
from nvila_model.cli.progress import Stopwatch
from nvila_model.cli.request import Request, takes_request

NANO = "answered by nano, the small model that comes with nvila-model; --model takes another"


@takes_request
def ask(
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[MEDIA]... QUESTION",
            help="Images and videos (files, patterns, folders of frames, http(s) addresses, - for standard input), "
            "then the question (- reads it from standard input).",
            show_default=False,
        ),
    ],
    request: Request,
    as_json: options.Json = False,
) -> None:
    """Answer a question about images and videos.

    The answer goes to standard output as it grows, tokens and timings to standard error.
    """
    watch = Stopwatch()
    with watch.stage("read", "opening the media"):
        from nvila_model.cli.media_arguments import open_media, split_words

        media_words, question = split_words(words)
        media = open_media(media_words, request.video)
    with watch.stage("load", "starting torch"):
        sampling = request.sampling()
    model = request.source.open(watch)
    from nvila_model.cli.answering import answer, print_piece

    messages = [{"role": "user", "content": [*media, question]}]
    answered = answer(model, messages, sampling, watch=watch, show=None if as_json else print_piece)
    named = {"model": request.source.name} | ({"adapter": request.adapter} if request.adapter else {})
    typer.echo(json.dumps(answered.to_dict() | named, ensure_ascii=False) if as_json else "")
    if request.model is None:
        print_note(NANO)
    if not as_json:
        print_note(answered.summary)
    if answered.finish == "interrupted":
        raise typer.Exit(INTERRUPTED)
