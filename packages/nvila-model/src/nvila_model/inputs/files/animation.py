"""Frames of an animation (GIF, APNG, WebP, AVIF) by number, with a clock, as of a video.

Each frame builds on the one before, so reaching one means decoding those before it; but only one lies in
memory, and which are wanted is decided before any is decoded.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate

from PIL import Image as PILImage

from nvila_model.inputs.errors import MediaError
from nvila_model.inputs.files.image_file import check_size, open_lazily, quiet_pillow
from nvila_model.inputs.limits import current_limits


class Animation:
    """An animation in memory; also a still picture, as one frame.

    Args:
        data: the bytes of the file.
        name: what errors call it.
        allow_truncated: take the frames that are there of a file that is cut short.

    Attributes:
        times: seconds from the first frame at which each frame appears.
        rate: frames a second on average.

    Raises: MediaError if it cannot be read, is over a limit, or is cut short.
    """

    def __init__(self, data: bytes, name: str, *, allow_truncated: bool = False) -> None:
        self.name = name
        self._image, index = open_lazily(data, name, allow_truncated=allow_truncated)
        width, height = self._image.size
        check_size(width, height, name, frame=len(index.durations) > 1)
        self._skipped = index.skipped
        durations = index.durations
        limits = current_limits()
        if len(durations) > limits.video_frames:
            raise MediaError(f"{name} has {len(durations)} frames, more than {limits.video_frames}: cut it in parts")
        if len(durations) * width * height > limits.animation_pixels:
            raise MediaError(
                f"{name} has {len(durations)} frames of {width} x {height}, more than {limits.animation_pixels} pixels "
                "in all (Limits.animation_pixels): shrink it or save it as MP4"
            )
        if not durations:
            raise MediaError(f"{name} has no frames that can be read")
        self.times = tuple(accumulate(durations[:-1], initial=0.0))
        self.rate = len(durations) / sum(durations)
        if self.times[-1] > limits.video_seconds:
            raise MediaError(
                f"{name} claims to last {self.times[-1]:.0f} s, more than {limits.video_seconds:.0f} "
                "(Limits.video_seconds): cut it in parts"
            )

    def close(self) -> None:
        """Let go of the file."""
        self._image.close()

    def __enter__(self) -> "Animation":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, indices: Sequence[int]) -> Iterator[tuple[int, PILImage.Image | None]]:
        """Frames by number, ascending, each once; None for one that does not decode."""
        for index in sorted(set(indices)):
            try:
                with quiet_pillow():
                    self._image.seek(index + self._skipped)
                    frame = self._image.copy()
            except Exception:  # whatever a decoder raises: the frame is named by whoever reads
                frame = None
            yield index, frame
