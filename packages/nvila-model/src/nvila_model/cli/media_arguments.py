"""From the words of a command line to images, videos and a question."""

from __future__ import annotations

import glob
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from mimetypes import guess_type
from pathlib import Path

from nvila_model.cli.ending import CommandError
from nvila_model.inputs.errors import MediaError, as_media_error, shown
from nvila_model.inputs.files.animation_index import read_index
from nvila_model.inputs.files.image_file import open_image, open_lazily
from nvila_model.inputs.files.kind import HEAD, Kind, kind_of
from nvila_model.inputs.media import Image, Video
from nvila_model.inputs.sources import is_address, is_folder, open_file, read_source, source_name
from nvila_model.inputs.tokenizer import clean_text

STANDARD_INPUT = "-"


@dataclass(frozen=True, kw_only=True)
class VideoOptions:
    """How videos are sampled; None leaves it to the model. And whether media may come from private addresses."""

    frames: int | None = None
    fps: float | None = None
    allow_truncated: bool = False
    allow_private: bool = False


def split_words(words: Sequence[str]) -> tuple[Sequence[str], str]:
    """The media and the question: the last word is the question, whatever its length; ``-`` reads it.

    Raises: CommandError if the question seems to have been left out.
    """
    *media, question = words
    if question == STANDARD_INPUT:
        if STANDARD_INPUT in media:
            raise CommandError("standard input cannot be both a medium and the question: give one as a file or a word")
        question = typed_text(sys.stdin.buffer.read())
        if not question.strip():
            raise CommandError("the question on standard input is empty: write it there")
        return media, question
    if not question.strip():
        raise CommandError("the question is empty: give it as the last argument")
    if names_file(question):
        raise CommandError(f"no question: the last argument, {question}, is a file; put the question after it")
    return media, typed_text(question)


def typed_text(text: str | bytes) -> str:
    """What was typed or piped, as text: UTF-8, or else the terminal's Latin-1."""
    if isinstance(text, str):
        try:
            text = text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            return clean_text(text)
    try:
        return text.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError:
        return text.decode("latin-1")


def names_file(word: str) -> bool:
    """Whether a word is the path of something; False for whatever no path can be."""
    try:
        return Path(word).exists()
    except (OSError, ValueError):  # too long, a NUL byte
        return False


def open_media(words: Sequence[str], options: VideoOptions) -> list[Image | Video]:
    """The media of a command line, opened, so that a bad one is refused before any model is loaded.

    Args:
        words: paths, patterns, folders of frames, http(s) addresses, data URIs, ``-`` for standard input.

    Raises: MediaError or CommandError, naming the word.
    """
    if list(words).count(STANDARD_INPUT) > 1:
        raise CommandError("standard input can be read once: give - once, and other media as files")
    return [medium for word in words for medium in open_word(word, options)]


def open_word(word: str, options: VideoOptions) -> list[Image | Video]:
    if word == STANDARD_INPUT:
        return [from_bytes(sys.stdin.buffer.read(), "standard input", options)]
    if is_address(word):
        data, name = read_source(word, kind="image", allow_private=options.allow_private)
        return [from_bytes(data, name, options, hide_content=True)]
    if names_file(word) or not glob.has_magic(word):
        return [from_path(Path(word), options)]
    try:
        matches = sorted(glob.glob(word, recursive=True))
    except (OSError, ValueError):
        matches = []
    if not matches:
        raise CommandError(f"no file matches {shown(word)}")
    return [from_path(Path(match), options) for match in matches]


def from_path(path: Path, options: VideoOptions) -> Image | Video:
    if is_folder(path):
        return checked(video(path, options))
    name = source_name(path, kind="image")
    with open_file(path, kind="video") as file, as_media_error(f"cannot read {name}"):
        kind = kind_of(file.read(HEAD))
    if is_film(kind, Video(path), name):
        return checked(video(path, options))
    data, _ = read_source(path, kind="image")
    return checked(video(path, options)) if is_animated(data, name) else Image(open_image(data, name))


def from_bytes(data: bytes, name: str, options: VideoOptions, *, hide_content: bool = False) -> Image | Video:
    if is_film(kind_of(data[:HEAD]), Video(data), name) or is_animated(data, name):
        return checked(video(data, options))
    return Image(open_image(data, name, hide_content=hide_content))


def is_film(kind: Kind, video: Video, name: str) -> bool:
    """Whether a file is a film: by its first bytes, else by who can read it, else by its name.

    Raises: CommandError for a recording of sound.
    """
    guessed = (guess_type(name.partition("?")[0])[0] or "").partition("/")[0] if kind == "unknown" else ""
    if kind == "sound" or guessed == "audio":
        raise CommandError(f"{name} is sound: give images or videos")
    if kind != "unknown":
        return kind == "video"
    try:
        open_lazily(read_source(video.source, kind="image")[0], name)
        return False
    except MediaError:
        pass
    try:
        checked(video)
    except MediaError:
        return guessed == "video"
    return True


def is_animated(data: bytes, name: str) -> bool:
    """Whether a picture file holds several frames to be shown one after the other."""
    with as_media_error(f"{name} is cut short or corrupt"):
        return kind_of(data[:HEAD]) == "animation" and len(read_index(data).durations) > 1


def video(source: Path | bytes, options: VideoOptions) -> Video:
    return Video(source, num_frames=options.frames, fps=options.fps, allow_truncated=options.allow_truncated)


def checked(video: Video) -> Video:
    """The same video, after its first frame was decoded to see that it can be."""
    next(iter(Video(video.source, allow_truncated=video.allow_truncated).sample(num_frames=1)))
    return video
