"""From the words of a command line to images and videos."""

from __future__ import annotations

import glob
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from mimetypes import guess_type
from pathlib import Path
from typing import Literal

from PIL import Image as PILImage
from PIL import ImageSequence

from nvila_model.cli.ending import CommandError
from nvila_model.inputs.media import Image, Video
from nvila_model.inputs.sources import MediaWarning, decoded, fetch, is_address, open_image

IMAGE_STARTS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\0\0\1\0", b"P5\n", b"P6\n")
VIDEO_STARTS = (b"\x1a\x45\xdf\xa3", b"OggS", b"FLV", b"\0\0\1\xba", b"\0\0\1\xb3", b"\x30\x26\xb2\x75")
RIFF_KINDS: dict[bytes, Literal["image", "video"]] = {b"AVI ": "video", b"WEBP": "image"}
IMAGE_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"mif1")


@dataclass(frozen=True, kw_only=True)
class VideoOptions:
    """How videos are sampled; None leaves it to the model."""

    frames: int | None = None
    fps: float | None = None
    allow_truncated: bool = False


def gather(words: Sequence[str], options: VideoOptions) -> list[Image | Video]:
    """The media of a command line, opened, so that a bad one is refused before any model is loaded.

    Args:
        words: paths, patterns, folders of frames, http(s) addresses, ``-`` for standard input.

    Raises: MediaError or CommandError, naming the word.
    """
    return [medium for word in words for medium in find(word, options)]


def find(word: str, options: VideoOptions) -> list[Image | Video]:
    if word == "-":
        return [from_bytes(sys.stdin.buffer.read(), "standard input", options)]
    if is_address(word):
        return [from_bytes(fetch(word), word, options)]
    if Path(word).exists() or not glob.has_magic(word):
        return [from_path(Path(word), options)]
    matches = sorted(glob.glob(word, recursive=True))
    if not matches:
        raise CommandError(f"no file matches {word}")
    return [from_path(Path(match), options) for match in matches]


def from_path(path: Path, options: VideoOptions) -> Image | Video:
    if path.is_dir():
        return opened(video(path, options))
    if not path.is_file():
        raise CommandError(f"no file at {path}")
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise CommandError(f"cannot read {path}: {error.strerror}") from None
    if kind_of(start, str(path)) == "image":
        return still(path.read_bytes(), str(path), options)
    return opened(video(path, options))


def from_bytes(data: bytes, name: str, options: VideoOptions) -> Image | Video:
    if kind_of(data[:512], name) == "image":
        return still(data, name, options)
    return opened(video(data, options))


def kind_of(start: bytes, name: str) -> Literal["image", "video"]:
    """What a file is by its first bytes, or else by its name; an image where neither tells.

    Raises: CommandError for a recording of sound.
    """
    if start[:4] == b"RIFF" and start[8:12] in RIFF_KINDS:
        return RIFF_KINDS[start[8:12]]
    if start[4:8] == b"ftyp":
        return "image" if start[8:12] in IMAGE_BRANDS else "video"
    if start.startswith(IMAGE_STARTS):
        return "image"
    transport_stream = start[:1] == b"\x47" and start[188:189] == b"\x47"
    if start.startswith(VIDEO_STARTS) or transport_stream or start[4:8] in (b"moov", b"mdat", b"wide"):
        return "video"
    guessed = guess_type(name.partition("?")[0])[0] or ""
    if guessed.startswith("audio/"):
        raise CommandError(f"{name} is sound: give images or videos")
    return "video" if guessed.startswith("video/") else "image"


def still(data: bytes, name: str, options: VideoOptions) -> Image | Video:
    """A decoded image; a video if it is an animation."""
    image = open_image(data, name)
    if getattr(image, "n_frames", 1) < 2:
        return Image(image)
    if image.format == "GIF":
        return opened(video(data, options))
    if image.format in ("WEBP", "PNG", "AVIF"):  # FFmpeg reads them as stills, or not at all
        return opened(video(pictures(image, name), options))
    if image.format == "TIFF":  # further pictures in a JPEG are previews
        pages = getattr(image, "n_frames", 1)
        warnings.warn(f"{name} has {pages} pages: the first is used; save others on their own", MediaWarning, 2)
    return Image(image)


def pictures(image: PILImage.Image, name: str) -> list[PILImage.Image]:
    """The frames of an animation. Raises: MediaError if one does not decode."""
    return [decoded(frame.copy(), name) for frame in ImageSequence.Iterator(image)]


def video(source: Path | bytes | list[PILImage.Image], options: VideoOptions) -> Video:
    return Video(source, num_frames=options.frames, fps=options.fps, allow_truncated=options.allow_truncated)


def opened(video: Video) -> Video:
    """The same video, after its first frame was decoded to see that it can be."""
    next(iter(Video(video.source, allow_truncated=video.allow_truncated).sample(num_frames=1)))
    return video
