"""Any frame of an encoded video, by number, without decoding what lies between.

The packets are read once without decoding: their time stamps, put in order, are the frames' numbers. A
frame is then reached from the last key frame before it. The last frame that really decodes ends the video,
however many the container announces; a file that stops well before its announced end is refused unless the
caller wants what is there.
"""

import io
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeGuard

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from PIL import Image as PILImage

from nvila_model.inputs.sources import MediaError

# A playlist inside a file must not make FFmpeg open other files or addresses.
_CLOSED = {"protocol_whitelist": "none"}

# FFmpeg draws text files as if on a terminal.
_TEXT_CODECS = {"ansi", "bintext", "idf", "xbin"}


class VideoFile:
    """A video of a path or of bytes, opened for reading frames by number.

    Args:
        source: a path, or the bytes of a file.
        name: what errors call it.
        allow_truncated: accept a file that ends before its container says.

    Attributes:
        times: seconds from the first frame at which each readable frame appears.
        rate: frames a second on average.

    Raises: MediaError if it cannot be read, holds no video, or is cut short.
    """

    def __init__(self, source: Path | bytes, name: str, *, allow_truncated: bool = False) -> None:
        self.name = name
        self._file = io.BytesIO(source) if isinstance(source, bytes) else source.open("rb")
        self._container: InputContainer | None = None
        try:
            self._container = self._open()
            self._read_times(allow_truncated)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the file."""
        if self._container is not None:
            self._container.close()
        self._file.close()

    def __enter__(self) -> "VideoFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, indices: Sequence[int]) -> Iterator[tuple[int, PILImage.Image | None]]:
        """Frames by number, ascending, each once; None for one that does not decode."""
        for index, frame in self._find(sorted(set(indices))):
            yield index, None if frame is None else to_image(frame)

    def _open(self) -> InputContainer:
        try:
            container = av.open(self._file, mode="r", container_options=_CLOSED)
        except (FFmpegError, ValueError, UnicodeDecodeError) as error:
            raise MediaError(f"{self.name} is not a video or is cut short: {_plain(error)}") from None
        problem = _unusable(container)
        if problem is not None:
            container.close()
            raise MediaError(f"{self.name} {problem}")
        self._stream = container.streams.video[0]
        self._stream.thread_type = "AUTO"
        return container

    def _read_times(self, allow_truncated: bool) -> None:
        assert self._container is not None
        stamps: list[int | None] = []
        keys: list[int] = []
        end = 0.0
        try:
            for packet in self._container.demux():
                if packet.stream_index != self._stream.index:
                    if packet.pts is not None and packet.time_base is not None:
                        end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
                elif packet.size and not packet.is_discard:
                    stamps.append(packet.pts)
                    if packet.is_keyframe and packet.pts is not None:
                        keys.append(packet.pts)
        except FFmpegError:
            pass  # what was read before the damage is the video; the check below says if that is too little
        if not stamps:
            raise MediaError(f"{self.name} has no frames that can be read")
        known = [stamp for stamp in stamps if stamp is not None]
        #: Time stamps in showing order; empty where the container gives none, and frames are counted instead.
        self._stamps = sorted(known) if len(set(known)) == len(stamps) else []
        self._keys = sorted(keys)
        rate = self._stream.average_rate or self._stream.guessed_rate
        self.rate = float(rate) if rate else 0.0
        readable = self._last_readable(len(stamps)) + 1
        self._stamps = self._stamps[:readable]
        self.times = self._seconds(readable)
        if not allow_truncated:
            self._refuse_truncated(readable, end)

    def _seconds(self, count: int) -> tuple[float, ...]:
        if self._stamps and self._stream.time_base:
            return tuple(float((stamp - self._stamps[0]) * self._stream.time_base) for stamp in self._stamps)
        return tuple(index / self.rate if self.rate else float(index) for index in range(count))

    def _last_readable(self, count: int) -> int:
        """Walk back from the announced end to the last frame that decodes, a key frame at a time."""
        end = count
        while end > 0:
            start = self._key_before(end - 1)
            found = [index for index, frame in self._find(range(start, end)) if frame is not None]
            if found:
                return found[-1]
            end = start
        raise MediaError(f"{self.name} has no frames that can be decoded")

    def _refuse_truncated(self, readable: int, end: float) -> None:
        """Raise if neither the pictures nor another stream, which ends at ``end``, reach the announced end."""
        assert self._container is not None
        announced = self._stream.frames
        if not self._container.duration or (announced and readable >= announced):
            return
        start = (self._container.start_time or 0) / av.time_base
        duration = self._container.duration / av.time_base
        missing = start + duration - max(end, start + self.times[-1])
        if missing > max(0.05 * duration, 2 / (self.rate or 1)):
            of = f"{readable} of {announced} frames" if announced else f"{duration - missing:.1f} of {duration:.1f} s"
            raise MediaError(
                f"{self.name} is cut short: {of} can be read; allow_truncated=True (--allow-truncated) uses those"
            )

    def _key_before(self, index: int) -> int:
        """The number of the last key frame at or before a frame; 0 where stamps are unknown."""
        if not self._stamps:
            return 0
        place = bisect_right(self._keys, self._stamps[index]) - 1
        return bisect_left(self._stamps, self._keys[place]) if place >= 0 else 0

    def _find(self, indices: Sequence[int]) -> Iterator[tuple[int, VideoFrame | None]]:
        if not self._stamps:
            yield from self._count_to(indices)
            return
        frames: Iterator[VideoFrame] = iter(())
        frame: VideoFrame | None = None
        for index in indices:
            target = self._stamps[index]
            if frame is None or frame.pts is None or not self._stamps[self._key_before(index)] <= frame.pts <= target:
                frame, frames = self._jump(index)
            while frame is not None and (frame.pts is None or frame.pts < target):
                frame = next(frames, None)
            whole = frame is not None and frame.pts == target and not frame.is_corrupt
            yield index, frame if whole else None

    def _jump(self, index: int) -> tuple[VideoFrame | None, Iterator[VideoFrame]]:
        """The first frame after a jump to a key frame before ``index``, and those that follow it.

        Streams without an index land too far, or guess other time stamps than when read from the start; an
        earlier key frame is tried then, at last the start of the file.
        """
        key = bisect_right(self._keys, self._stamps[index]) - 1
        for place in (key, key - 1, key - 3):
            if place < 0:
                continue
            frames = self._decode_from(self._keys[place])
            frame = next(frames, None)
            if frame is not None and self._is_known(frame.pts) and frame.pts <= self._stamps[index]:
                return frame, frames
        frames = self._decode_all()
        return next(frames, None), frames

    def _is_known(self, stamp: int | None) -> TypeGuard[int]:
        place = bisect_left(self._stamps, stamp) if stamp is not None else len(self._stamps)
        return place < len(self._stamps) and self._stamps[place] == stamp

    def _count_to(self, indices: Sequence[int]) -> Iterator[tuple[int, VideoFrame | None]]:
        """Frames by counting from the start, for containers without time stamps."""
        wanted = iter(indices)
        index = next(wanted, None)
        for number, frame in enumerate(self._decode_all()):
            if index is None:
                return
            if number == index:
                yield index, None if frame.is_corrupt else frame
                index = next(wanted, None)
        while index is not None:
            yield index, None
            index = next(wanted, None)

    def _decode_from(self, stamp: int) -> Iterator[VideoFrame]:
        """Frames in showing order from the key frame at a stamp on."""
        assert self._container is not None
        try:
            self._container.seek(stamp, stream=self._stream)
        except FFmpegError:  # a format that cannot seek
            yield from self._decode_all()
            return
        yield from self._decode()

    def _decode_all(self) -> Iterator[VideoFrame]:
        """Frames in showing order from the start of the file."""
        assert self._container is not None
        self._container.close()
        self._file.seek(0)
        self._container = self._open()
        yield from self._decode()

    def _decode(self) -> Iterator[VideoFrame]:
        """Frames from here on; broken packets are passed over."""
        assert self._container is not None
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
                if packet is None:
                    return
                yield from packet.decode()
            except EOFError:
                return
            except FFmpegError:
                continue


def _unusable(container: InputContainer) -> str | None:
    """Why a container that opened is still no video, if so."""
    if not container.streams.video:
        return "has no video stream"
    codec = container.streams.video[0].codec_context
    if codec is None:  # pyright: ignore[reportUnnecessaryComparison] - so for codecs that FFmpeg does not know
        return "is not a video or is cut short: no decoder knows its video stream"
    return "is text, not a video" if codec.name in _TEXT_CODECS else None


def to_image(frame: VideoFrame) -> PILImage.Image:
    """A decoded frame as an RGB image, upright."""
    image = frame.to_image()
    # Phones store the turn beside the pixels, counter-clockwise as Pillow counts it.
    return image.rotate(frame.rotation, expand=True) if frame.rotation else image


def _plain(error: BaseException) -> str:
    return getattr(error, "strerror", None) or str(error)
