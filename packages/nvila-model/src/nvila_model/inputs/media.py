"""Images and videos as parts of a message.

``Image`` and ``Video`` only name a source; nothing is opened before they are loaded. A video is an encoded
file, a folder of frames, a list of images or an array. Whichever it is, frames come out one at a time
(``sample``), so that a long video never lies in memory unpacked; ``load`` collects them. A frame that does
not decode is named, never dropped in silence, and never counted.
"""

import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage

from nvila_model.inputs.frame_sampling import at_rate, cut_at_rate, spread
from nvila_model.inputs.sources import (
    MediaError,
    MediaWarning,
    decoded,
    image_from_array,
    is_address,
    open_image,
    read_source,
)
from nvila_model.inputs.video_file import VideoFile

__all__ = ["Image", "MediaError", "MediaWarning", "SampledFrame", "Video", "VideoFrames"]


@dataclass(frozen=True, eq=False)
class Image:
    """One image of a message.

    Args:
        source: a path, an http(s) address, the bytes of a file, a PIL image, or a numpy array
            ``[h, w, 3]``, ``[h, w, 4]`` or ``[h, w]`` of uint8.
    """

    source: Any

    def load(self) -> PILImage.Image:
        """The decoded image, in its own mode and not rotated. Raises MediaError."""
        if isinstance(self.source, PILImage.Image):
            return decoded(self.source, "the image")
        if isinstance(self.source, np.ndarray):
            return image_from_array(self.source)
        return open_image(*read_source(self.source, kind="image"))


@dataclass(frozen=True)
class SampledFrame:
    """One chosen frame: its number in the video, the second at which it appears, and its picture."""

    index: int
    timestamp: float
    image: PILImage.Image


@dataclass(frozen=True, kw_only=True)
class VideoFrames:
    """The frames of a video that were chosen and really decoded.

    Attributes:
        frames: the pictures, in order; one chosen twice stands twice.
        timestamps: seconds from the start, one a frame; frame numbers where the source has no clock.
        failed: numbers of chosen frames that could not be decoded.
    """

    frames: tuple[PILImage.Image, ...]
    timestamps: tuple[float, ...]
    failed: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Video:
    """One video of a message.

    Args:
        source: a path or http(s) address of a video, its bytes, a folder of frames (in natural order of
            their names), a list of images (anything that ``Image`` takes), or a numpy array
            ``[frames, h, w, 3]`` of uint8.
        num_frames: frames to take; None leaves it to the checkpoint.
        fps: frames to take a second, at most ``num_frames``; None leaves it to the checkpoint, 0 spreads
            ``num_frames`` over the whole video.
        allow_truncated: use what can be read of a file that is cut short.
    """

    source: Any
    num_frames: int | None = None
    fps: float | None = None
    allow_truncated: bool = False

    def __post_init__(self) -> None:
        if self.num_frames is not None and self.num_frames < 1:
            raise MediaError(f"num_frames is {self.num_frames}: a video needs at least 1 frame")
        if self.fps is not None and self.fps < 0:
            raise MediaError(f"fps is {self.fps}: pass a rate above 0, or 0 to spread num_frames over the video")

    def load(self, *, num_frames: int = 8, fps: float = 0.0, cut_at_limit: bool = False) -> VideoFrames:
        """All sampled frames at once; see ``sample``."""
        failed: list[int] = []
        frames = list(self.sample(num_frames=num_frames, fps=fps, cut_at_limit=cut_at_limit, failed=failed))
        return VideoFrames(
            frames=tuple(frame.image for frame in frames),
            timestamps=tuple(frame.timestamp for frame in frames),
            failed=tuple(failed),
        )

    def sample(
        self,
        *,
        num_frames: int = 8,
        fps: float = 0.0,
        cut_at_limit: bool = False,
        failed: list[int] | None = None,
    ) -> Iterator[SampledFrame]:
        """Chosen frames in order, decoded one by one.

        Args:
            num_frames: frames to take where the video does not say itself.
            fps: frames a second where the video does not say itself; only encoded videos have a clock.
            cut_at_limit: choose by fps as the reference does; see ``frame_sampling.cut_at_rate``.
            failed: numbers of frames that did not decode are appended to it.

        Warns: MediaWarning naming frames that did not decode.
        Raises: MediaError if the source cannot be used at all.
        """
        failed = [] if failed is None else failed
        num_frames = self.num_frames or num_frames
        if self.has_clock:
            fps = fps if self.fps is None else self.fps
            frames = self._sample_file(num_frames, fps, cut_at_limit)
        elif self.fps:
            raise MediaError(f"fps is {self.fps}, but a sequence of images has no clock: pass num_frames (--frames)")
        else:
            frames = self._sample_pictures(num_frames)
        count = 0
        for index, timestamp, image in frames:
            if image is None:
                failed.append(index)
                continue
            count += 1
            yield SampledFrame(index, timestamp, image)
        self._report(count, failed)

    @property
    def name(self) -> str:
        """What messages call the video."""
        return str(self.source) if isinstance(self.source, (str, Path)) else "the video"

    @property
    def has_clock(self) -> bool:
        """Whether its frames appear at known seconds; only encoded videos say so."""
        if isinstance(self.source, (bytes, bytearray, memoryview)) or is_address(self.source):
            return True
        return isinstance(self.source, (str, Path)) and not Path(self.source).is_dir()

    def _sample_file(
        self, num_frames: int, fps: float, cut_at_limit: bool
    ) -> Iterator[tuple[int, float, PILImage.Image | None]]:
        with self._open_file() as video:
            if fps > 0 and cut_at_limit:
                chosen = cut_at_rate(len(video.times), rate=video.rate, fps=fps, num_frames=num_frames)
            elif fps > 0:
                chosen = at_rate(video.times, fps=fps, num_frames=num_frames)
            else:
                chosen = spread(len(video.times), num_frames)
            for index, image in video.read(chosen):
                for _ in range(chosen.count(index)):
                    yield index, video.times[index], image

    def _open_file(self) -> VideoFile:
        source = self.source
        if isinstance(source, (str, Path)) and not is_address(source):
            path = Path(source)
            if not path.is_file():
                raise MediaError(f"no file at {path}")
            if path.stat().st_size == 0:
                raise MediaError(f"{path} is empty (0 bytes): pass a video file")
            return VideoFile(path, str(path), allow_truncated=self.allow_truncated)
        data, name = read_source(source, kind="video")
        if not data:
            raise MediaError(f"{name} is empty (0 bytes): pass a video file")
        return VideoFile(data, name, allow_truncated=self.allow_truncated)

    def _sample_pictures(self, num_frames: int) -> Iterator[tuple[int, float, PILImage.Image | None]]:
        pictures = self._pictures()
        chosen = spread(len(pictures), num_frames)
        for index in dict.fromkeys(chosen):
            try:
                image = pictures[index].load()
            except MediaError:
                image = None
            for _ in range(chosen.count(index)):
                yield index, float(index), image

    def _pictures(self) -> Sequence[Image]:
        source = self.source
        if isinstance(source, np.ndarray):
            if source.ndim != 4:
                raise MediaError(f"a video array must be uint8 [frames, h, w, 3], not {list(source.shape)}")
            pictures = [Image(image_from_array(frame)) for frame in source]
        elif isinstance(source, (list, tuple)):
            pictures = [part if isinstance(part, Image) else Image(part) for part in source]
        elif isinstance(source, (str, Path)):
            pictures = [Image(path) for path in _frame_files(Path(source))]
        else:
            raise MediaError(
                f"cannot take a video from {type(source).__name__}: pass a path, bytes, a folder or a list of images"
            )
        if not pictures:
            raise MediaError(f"{self.name} holds no frames: expected image files or images")
        return pictures

    def _report(self, count: int, failed: list[int]) -> None:
        if not failed:
            return
        numbers = ", ".join(map(str, dict.fromkeys(failed)))
        if count == 0:
            raise MediaError(f"no chosen frame of {self.name} can be decoded (numbers {numbers})")
        warnings.warn(
            f"{len(failed)} of {count + len(failed)} chosen frames of {self.name} cannot be decoded "
            f"(numbers {numbers}): the other {count} are used",
            MediaWarning,
            stacklevel=3,
        )


def _frame_files(folder: Path) -> list[Path]:
    suffixes = PILImage.registered_extensions()
    files = (path for path in folder.iterdir() if path.suffix.lower() in suffixes and path.is_file())
    return sorted((path for path in files if not path.name.startswith(".")), key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    """frame_2 before frame_10, unlike the reference's plain sort; equal where numbers are padded."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name) if part]
