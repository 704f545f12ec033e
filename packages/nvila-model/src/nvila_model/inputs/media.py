"""Images and videos as parts of a message.

``Image`` and ``Video`` only name a source; nothing is opened before they are loaded. A video is an encoded
file, an animation, a folder of frames, a list of images or an array. Whichever it is, frames come out one at a
time (``sample``), so that a long video never lies in memory unpacked; ``load`` collects them. A frame that does
not decode is named, never dropped in silence, and never counted. What a source may cost stands in ``Limits``.
"""

import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage

from nvila_model.inputs.errors import MediaError, MediaWarning, as_media_error, reason, shown
from nvila_model.inputs.files.animation import Animation
from nvila_model.inputs.files.image_file import check_size, decoded, image_from_array, open_image
from nvila_model.inputs.files.kind import HEAD, kind_of
from nvila_model.inputs.files.video_file import VideoFile
from nvila_model.inputs.frame_sampling import at_rate, cut_at_rate, spread
from nvila_model.inputs.limits import current_limits
from nvila_model.inputs.sources import (
    byte_limit,
    is_address,
    is_folder,
    open_file,
    read_source,
    source_name,
)

__all__ = ["Image", "MediaError", "MediaWarning", "SampledFrame", "Video", "VideoFrames"]


@dataclass(frozen=True, eq=False)
class Image:
    """One image of a message.

    Args:
        source: a path, an http(s) address, a data URI, the bytes of a file, a PIL image, a numpy array
            ``[h, w, 3]``, ``[h, w, 4]`` or ``[h, w]``, or a torch tensor ``[1|3|4, h, w]``, both of uint8.
        allow_private: read from addresses of this machine and of private networks too.
    """

    source: Any
    allow_private: bool = False

    def load(self) -> PILImage.Image:
        """The decoded image, in its own mode and not rotated; of an animation the first frame.

        Warns: MediaWarning if the file holds further frames or pages.
        Raises: MediaError.
        """
        source = self.source
        if isinstance(source, PILImage.Image):
            check_size(*source.size, "the image")
            return decoded(source, "the image")
        if _is_tensor(source):
            return image_from_array(_planes_last(source, dims=3, what="an image tensor", shape="[1|3|4, h, w]"))
        if isinstance(source, np.ndarray):
            return image_from_array(source)
        data, name = read_source(source, kind="image", allow_private=self.allow_private)
        return open_image(data, name, hide_content=is_address(source))


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
        source: a path, http(s) address or data URI of a video or an animation (GIF, APNG, WebP, AVIF), its
            bytes, a folder of frames (in natural order of their names), a list of images (anything that
            ``Image`` takes), a numpy array ``[frames, h, w, 3]`` or a torch tensor ``[frames, 3, h, w]`` of uint8.
        num_frames: frames to take; None leaves it to the checkpoint.
        fps: frames to take a second, at most ``num_frames``; None leaves it to the checkpoint, 0 spreads
            ``num_frames`` over the whole video.
        allow_truncated: use what can be read of a file that is cut short.
        allow_private: read from addresses of this machine and of private networks too.
    """

    source: Any
    num_frames: int | None = None
    fps: float | None = None
    allow_truncated: bool = False
    allow_private: bool = False

    def __post_init__(self) -> None:
        _check_choice(self.num_frames, self.fps)

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
        _check_choice(num_frames, fps)
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
        named = isinstance(self.source, (str, Path))
        return source_name(self.source, kind="video") if named else "the video"

    @property
    def has_clock(self) -> bool:
        """Whether its frames appear at known seconds; only encoded videos and animations say so."""
        if isinstance(self.source, (bytes, bytearray, memoryview)) or is_address(self.source):
            return True
        return isinstance(self.source, (str, Path)) and not is_folder(self.source)

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

    def _open_file(self) -> VideoFile | Animation:
        source = self.source
        if isinstance(source, (str, Path)) and not is_address(source):
            name = source_name(source, kind="video")
            file = open_file(source, kind="video")
            try:
                with as_media_error(f"cannot read {name}"):
                    start = file.read(HEAD)
                    self._refuse_empty(start, name)
                    if kind_of(start) != "animation":
                        return VideoFile(file, name, allow_truncated=self.allow_truncated)
                    limit = byte_limit("image")
                    data = start + file.read(limit + 1 - len(start))
                    if len(data) > limit:
                        raise MediaError(f"{name} has more than {limit} bytes (Limits.image_bytes): save it as MP4")
            except BaseException:
                file.close()
                raise
            file.close()
        else:
            data, name = read_source(source, kind="video", allow_private=self.allow_private)
            self._refuse_empty(data, name)
            if kind_of(data[:HEAD]) != "animation":
                return VideoFile(data, name, allow_truncated=self.allow_truncated)
        return Animation(data, name, allow_truncated=self.allow_truncated)

    def _refuse_empty(self, start: bytes, name: str) -> None:
        if not start:
            raise MediaError(f"{name} is empty (0 bytes): pass a video file")

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
        if _is_tensor(source):
            source = _planes_last(source, dims=4, what="a video tensor", shape="[frames, 1|3|4, h, w]")
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
    try:
        files = [path for path in folder.iterdir() if path.suffix.lower() in suffixes and path.is_file()]
    except FileNotFoundError:
        raise MediaError(f"no file at {shown(folder)}") from None
    except (OSError, ValueError) as error:
        raise MediaError(f"cannot read the folder {shown(folder)}: {reason(error)}") from None
    return sorted((path for path in files if not path.name.startswith(".")), key=_natural)


def _natural(path: Path) -> list[tuple[int, str]]:
    """frame_2 before frame_10, unlike the reference's plain sort; equal where numbers are padded."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name) if part]


def _check_choice(num_frames: Any, fps: Any) -> None:
    """Refuse numbers of frames and rates that are none, or over a limit. Raises: MediaError."""
    limits = current_limits()
    if num_frames is not None:
        if isinstance(num_frames, bool) or not isinstance(num_frames, (int, np.integer)):
            raise MediaError(f"num_frames is {shown(repr(num_frames), 40)}: pass a whole number")
        if num_frames < 1:
            raise MediaError(f"num_frames is {num_frames}: a video needs at least 1 frame")
        if num_frames > limits.frames:
            raise MediaError(
                f"num_frames is {shown(num_frames, 40)}, more than {limits.frames} (Limits.frames): take fewer"
            )
    if fps is not None:
        if isinstance(fps, bool) or not isinstance(fps, (int, float, np.integer, np.floating)) or fps != fps:
            raise MediaError(f"fps is {shown(repr(fps), 40)}: pass a number")
        if fps < 0:
            raise MediaError(f"fps is {fps}: pass a rate above 0, or 0 to spread num_frames over the video")
        if fps > limits.fps:
            raise MediaError(f"fps is {shown(fps, 40)}, more than {limits.fps:g} (Limits.fps): pass a lower rate")


def _is_tensor(source: object) -> bool:
    torch = sys.modules.get("torch")  # whoever passes a tensor has imported it
    return torch is not None and isinstance(source, torch.Tensor)


def _planes_last(tensor: Any, *, dims: int, what: str, shape: str) -> np.ndarray:
    """A uint8 tensor with its channels moved to the end, grey ones without them. Raises: MediaError."""
    torch = sys.modules["torch"]
    if tensor.dtype != torch.uint8 or tensor.ndim != dims or tensor.shape[-3] not in (1, 3, 4):
        raise MediaError(f"{what} must be uint8 {shape}, not {tensor.dtype} {list(tensor.shape)}")
    array = tensor.detach().cpu().movedim(-3, -1).numpy()
    return array[..., 0] if array.shape[-1] == 1 else array
