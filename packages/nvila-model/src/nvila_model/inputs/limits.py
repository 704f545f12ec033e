"""What one input may cost, decided before it is decoded.

A file of a few kilobytes can ask for gigabytes of pixels, and an address can send for ever. Every reader of
media asks here first. Three doors change the values: ``with use_limits(Limits(...))`` for a block of code,
``NVILA_LIMITS="pixels=500000000,sides=100000"`` for a process, ``nvila ask --limit pixels=500000000`` for a
command.
"""

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace

VARIABLE = "NVILA_LIMITS"


class LimitError(ValueError):
    """A limit that does not exist or is no number above 0; the message is one sentence for the user."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on one image, one video, one answer of an address or one chat template.

    Attributes:
        image_bytes: size of an image file, of bytes and of a data URI.
        video_bytes: size of a video file.
        fetch_bytes: size of what an address answers.
        fetch_seconds: from the first look-up of a name to the last byte, redirects included.
        redirects: addresses that one address may lead to, one after the other.
        pixels: width times height of an image.
        frame_pixels: the same of a frame of a video or an animation.
        animation_pixels: pixels of all frames of an animation together (each builds on the one before).
        sides: longer side of an image or a frame, in pixels.
        aspect_ratio: longer side over shorter side.
        frames: frames that may be chosen of one video.
        fps: frames a second that may be asked for.
        video_frames: frames that a video may hold.
        video_seconds: seconds that a video may last.
        template_seconds: for a chat template to render one conversation.
        template_bytes: memory of the process in which chat templates run that are not plain.

    Raises: LimitError for a value that is not above 0.
    """

    image_bytes: int = 256 * 2**20
    video_bytes: int = 16 * 2**30
    fetch_bytes: int = 256 * 2**20
    fetch_seconds: float = 60.0
    redirects: int = 5
    pixels: int = 178_956_970  # where Pillow itself stops
    frame_pixels: int = 50_000_000  # 8K video has 36 million
    animation_pixels: int = 4_000_000_000
    sides: int = 65_535  # JPEG's own limit
    aspect_ratio: float = 20_000.0
    frames: int = 4096
    fps: float = 1000.0
    video_frames: int = 5_000_000
    video_seconds: float = 48 * 3600.0
    template_seconds: float = 10.0
    template_bytes: int = 512 * 2**20

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            whole = field.type in (int, "int")
            if not isinstance(value, int if whole else (int, float)) or isinstance(value, bool):
                raise LimitError(f"limit {field.name} is {value!r}: give a {'whole number' if whole else 'number'}")
            if math.isnan(value) or value < (0 if field.name == "redirects" else 1):
                raise LimitError(f"limit {field.name} is {value!r}: give a number of at least 1")

    @classmethod
    def from_words(cls, words: Sequence[str], *, base: "Limits | None" = None) -> "Limits":
        """``base`` (or the defaults) with ``NAME=VALUE`` words applied. Raises: LimitError."""
        known = {field.name: field.type in (int, "int") for field in fields(cls)}
        changes: dict[str, int | float] = {}
        for word in words:
            name, equals, text = word.partition("=")
            name = name.strip()
            if not equals or name not in known:
                raise LimitError(f"{word!r:.80} is not a limit: write NAME=VALUE, NAME one of {', '.join(known)}")
            try:
                changes[name] = int(text) if known[name] else float(text)
            except ValueError:
                raise LimitError(f"limit {name} is {text!r:.40}: give a number") from None
        return replace(base or cls(), **changes)  # pyright: ignore[reportArgumentType] - each by its own type


_CURRENT: ContextVar[Limits | None] = ContextVar("nvila_limits", default=None)


def current_limits() -> Limits:
    """The limits in force here: of the innermost ``use_limits``, else of ``NVILA_LIMITS``, else the defaults."""
    return _CURRENT.get() or _from_environment(os.environ.get(VARIABLE, ""))


def set_limits(limits: Limits) -> None:
    """Read media by these limits from here on in this context; what ``--limit`` does."""
    _CURRENT.set(limits)


@contextmanager
def use_limits(limits: Limits) -> Iterator[Limits]:
    """Read media by these limits in a block of code; other threads keep theirs."""
    token = _CURRENT.set(limits)
    try:
        yield limits
    finally:
        _CURRENT.reset(token)


def _from_environment(text: str) -> Limits:
    words = [word for word in text.split(",") if word.strip()]
    if not words:
        return _DEFAULT
    try:
        return Limits.from_words(words)
    except LimitError as error:
        raise LimitError(f"{VARIABLE}: {error}") from None


_DEFAULT = Limits()
