"""Any frame of an encoded video, by number, without decoding what lies between.

The packets are read once without decoding (``packets.py``): their time stamps, put in order, are the frames'
numbers. A frame is then reached from the last key frame before it. Where stamps are missing or lie, frames are
counted from the start instead. The last frame that really decodes ends the video, however many the container
announces; a file that stops well before its announced end is refused unless the caller wants what is there.
"""

import io
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import BinaryIO, TypeGuard

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.sidedata.sidedata import Type as SideData
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image as PILImage

from nvila_model.inputs.errors import MediaError, as_media_error
from nvila_model.inputs.files.container_end import reaches_end
from nvila_model.inputs.files.display_matrix import upright
from nvila_model.inputs.files.image_file import check_size
from nvila_model.inputs.files.packets import Packets, read_packets
from nvila_model.inputs.limits import current_limits

# A playlist inside a file must not make FFmpeg open other files or addresses.
_CLOSED = {"protocol_whitelist": "none"}

# FFmpeg draws text files as if on a terminal.
_TEXT_CODECS = {"ansi", "bintext", "idf", "xbin"}

#: Frames from the start whose stamps are compared with the order in which they come out of the decoder.
_PROBED = 48


class VideoFile:
    """A video of an open file or of bytes, for reading frames by number.

    Args:
        source: a path, an open file (closed with this), or the bytes of a file.
        name: what errors call it.
        allow_truncated: accept a file that ends before its container says.

    Attributes:
        times: seconds from the first frame at which each readable frame appears.
        rate: frames a second on average.

    Raises: MediaError if it cannot be read, holds no video, is over a limit, or is cut short.
    """

    def __init__(self, source: Path | BinaryIO | bytes, name: str, *, allow_truncated: bool = False) -> None:
        self.name = name
        self._file: BinaryIO
        if isinstance(source, Path):
            self._file = source.open("rb")
        else:
            self._file = io.BytesIO(source) if isinstance(source, bytes) else source
        self._container: InputContainer | None = None
        try:
            with as_media_error(f"{name} is not a video or is cut short"):
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
        with as_media_error(f"{self.name} cannot be decoded"):
            for index, frame in self._find(sorted(set(indices))):
                yield index, None if frame is None else to_image(frame)

    def _open(self) -> InputContainer:
        self._file.seek(0)
        container = av.open(self._file, mode="r", container_options=_CLOSED, metadata_errors="replace")
        try:
            self._stream = _film(container, self.name)
            context = self._stream.codec_context
            if context.width and context.height:  # some are known only from the first frame
                check_size(context.width, context.height, self.name, frame=True)
            # FFmpeg itself refuses frames that turn out larger.
            context.options = {"max_pixels": str(current_limits().frame_pixels)}
            self._stream.thread_type = "AUTO"
        except BaseException:
            container.close()
            raise
        return container

    def _read_times(self, allow_truncated: bool) -> None:
        assert self._container is not None
        packets = read_packets(self._container, self._stream)
        most = current_limits().video_frames
        if packets.count > most:
            raise MediaError(f"{self.name} has more than {most} frames (Limits.video_frames): cut it in parts")
        if not packets.count:
            raise MediaError(f"{self.name} has no frames that can be read")
        rate = self._stream.average_rate or self._stream.guessed_rate
        self.rate = float(rate) if rate else 0.0
        self._keys = packets.keys
        #: Time stamps in showing order; empty where frames are counted instead.
        self._stamps = packets.stamps
        if self._stamps and not self._comes_out_in_order():
            self._stamps = []
        readable = self._last_readable(packets.count) + 1
        self._stamps = self._stamps[:readable]
        self.times = self._seconds(readable)
        longest = current_limits().video_seconds
        if not self.times[-1] <= longest:
            raise MediaError(
                f"{self.name} claims to last {self.times[-1]:.0f} s, more than {longest:.0f} (Limits.video_seconds): "
                "cut it in parts"
            )
        if not allow_truncated:
            self._refuse_truncated(readable, packets)

    def _comes_out_in_order(self) -> bool:
        """Whether the first frames that decode bear ascending stamps, each that of a packet."""
        stamps = [frame.pts for frame in islice(self._decode_all(), _PROBED)]
        return all(self._is_known(stamp) for stamp in stamps) and all(
            one < other for one, other in pairwise(stamp for stamp in stamps if stamp is not None)
        )

    def _seconds(self, count: int) -> tuple[float, ...]:
        if self._stamps and self._stream.time_base:
            return tuple(float((stamp - self._stamps[0]) * self._stream.time_base) for stamp in self._stamps)
        return tuple(index / self.rate if self.rate else float(index) for index in range(count))

    def _last_readable(self, count: int) -> int:
        """Walk back from the announced end to the last frame that decodes, a key frame at a time."""
        end = count
        while end > 0:
            start = self._key_before(end - 1)
            last = -1
            for index, frame in self._find(range(start, end)):
                last = index if frame is not None else last
            if last >= 0:
                return last
            end = start
        raise MediaError(f"{self.name} has no frames that can be decoded")

    def _refuse_truncated(self, readable: int, packets: Packets) -> None:
        """Raise if neither the pictures nor another stream reach the announced end of a file that was cut."""
        assert self._container is not None
        announced = self._stream.frames
        if not self._container.duration or (announced and readable >= announced):
            return
        complete = readable == packets.count and not packets.broken
        if complete and reaches_end(self._file):
            return  # the last picture is held for a while
        start = (self._container.start_time or 0) / av.time_base
        duration = self._container.duration / av.time_base
        end = max(packets.end, packets.own_end if complete else 0.0)
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


def _film(container: InputContainer, name: str) -> VideoStream:
    """The stream of moving pictures, whichever comes first; covers and thumbnails are none. Raises: MediaError."""
    streams = container.streams.video
    films = [stream for stream in streams if not _is_cover(stream)]
    if not films:
        what = "a cover, but no film" if streams else "no video stream"
        sound = "is sound: it " if container.streams.audio else ""
        raise MediaError(f"{name} {sound}has {what}")
    codec = films[0].codec_context
    if codec is None:  # pyright: ignore[reportUnnecessaryComparison] - so for codecs that FFmpeg does not know
        raise MediaError(f"{name} is not a video or is cut short: no decoder knows its video stream")
    if codec.name in _TEXT_CODECS:
        raise MediaError(f"{name} is text, not a video")
    return films[0]


def _is_cover(stream: VideoStream) -> bool:
    disposition = stream.disposition
    return bool(disposition & (type(disposition).attached_pic | type(disposition).timed_thumbnails))


def to_image(frame: VideoFrame) -> PILImage.Image:
    """A decoded frame as an RGB image, upright."""
    matrix = frame.side_data.get(SideData.DISPLAYMATRIX)  # pyright: ignore[reportArgumentType, reportCallIssue]
    return upright(frame.to_image(), None if matrix is None else bytes(matrix))
