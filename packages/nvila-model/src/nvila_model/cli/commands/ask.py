"""``nvila ask MEDIA... QUESTION``."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from nvila_model.cli import options
from nvila_model.cli.ending import INTERRUPTED, say
from nvila_model.cli.progress import Stopwatch

NANO = "answered by nano, the small model that comes with nvila-model; --model takes another"


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
    as_json: options.Json = False,
) -> None:
    """Answer a question about images and videos.

    The answer goes to standard output as it grows, tokens and timings to standard error.
    """
    options.apply_limits(limit)
    source = options.Source(
        model=model, revision=revision, offline=offline, token=token,
        device=device, dtype=dtype, threads=threads, max_tiles=max_tiles, adapter=adapter,
        accumulate=accumulate,
    )  # fmt: skip
    watch = Stopwatch()
    with watch.stage("read", "opening the media"):
        from nvila_model.cli.media_arguments import VideoOptions, gather, split

        media_words, question = split(words)
        video = VideoOptions(frames=frames, fps=fps, allow_truncated=allow_truncated, allow_private=allow_private)
        media = gather(media_words, video)
    with watch.stage("load", "starting torch"):
        drawing = options.sampling(
            max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k,
            repetition_penalty=repetition_penalty, seed=seed, stop=tuple(stop or ()),
        )  # fmt: skip
    loaded = source.open(watch)
    from nvila_model.cli.answering import aloud, tell

    messages = [{"role": "user", "content": [*media, question]}]
    told = tell(loaded, messages, drawing, watch=watch, show=None if as_json else aloud)
    named = {"model": source.name} | ({"adapter": adapter} if adapter else {})
    typer.echo(json.dumps(told.to_dict() | named, ensure_ascii=False) if as_json else "")
    if model is None:
        say(NANO)
    if not as_json:
        say(told.summary)
    if told.finish == "interrupted":
        raise typer.Exit(INTERRUPTED)
