"""Hostile clips: turned, damaged, nameless, and asked for absurd frames."""

import math
import random
import struct
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import av.filter
import numpy as np
from case import Case
from nvila_model.cli.media_arguments import VideoOptions, open_media
from nvila_model.inputs.media import Video
from pictures import drawn, encoded
from PIL import Image as PILImage

SIZE = (64, 48)
RATE = 10


def clip(container: str, codec: str, frames: int = 20, **options: str) -> bytes:
    """A clip of drawn frames."""
    with tempfile.NamedTemporaryFile() as temporary:
        with av.open(temporary.name, "w", format=container) as file:
            stream = file.add_stream(codec, rate=25 if codec == "mpeg2video" else RATE, options=options)
            stream.width, stream.height = SIZE
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            if codec == "mpeg2video":
                stream.codec_context.max_b_frames = 0
            for number in range(frames):
                file.mux(stream.encode(av.VideoFrame.from_image(drawn(number, SIZE))))
            file.mux(stream.encode())
        return Path(temporary.name).read_bytes()


ORIENTATIONS = {
    (1, 0, 0, 1): "null", (-1, 0, 0, 1): "hflip", (1, 0, 0, -1): "vflip", (-1, 0, 0, -1): "hflip,vflip",
    (0, 1, -1, 0): "transpose=clock", (0, -1, 1, 0): "transpose=cclock", (0, 1, 1, 0): "transpose=cclock_flip",
    (0, -1, -1, 0): "transpose=clock_flip",
}  # fmt: skip


def filtered(picture: PILImage.Image, filters: str) -> PILImage.Image:
    """A picture through FFmpeg's own filters."""
    graph = av.filter.Graph()
    frame = av.VideoFrame.from_image(picture)
    nodes: list[Any] = [
        graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1))
    ]
    nodes += [graph.add(name, argument) for name, _, argument in (part.partition("=") for part in filters.split(","))]
    nodes.append(graph.add("buffersink"))
    for one, other in pairwise(nodes):
        one.link_to(other)
    graph.configure()
    graph.push(frame)
    turned: Any = graph.pull()
    return turned.to_image()


def turned(seed: int, count: int) -> Iterator[Case]:
    """Every orientation that a display matrix has, in files: the frames are those of FFmpeg's filters."""
    for container in ("mp4", "mov"):
        data = clip(container, "mpeg4")
        place = data.index(b"tkhd") + 44
        for matrix, filters in ORIENTATIONS.items():
            a, b, c, d = (value * 65536 for value in matrix)
            bad = data[:place] + struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30) + data[place + 36 :]
            yield Case(name=f"{container} {filters}", call=partial(same_turn, bad, data, filters), right="opens")


def same_turn(data: bytes, plain: bytes, filters: str) -> None:
    stored = Video(plain).load(num_frames=3).frames
    for frame, as_stored in zip(Video(data).load(num_frames=3).frames, stored, strict=True):
        expected = filtered(as_stored, filters)
        assert frame.size == expected.size, (frame.size, expected.size)
        assert np.array_equal(np.asarray(frame), np.asarray(expected)), "other pixels than FFmpeg's"


CONTAINERS = [
    ("mp4", "mpeg4"), ("mov", "mpeg4"), ("matroska", "mpeg4"), ("avi", "mjpeg"), ("avi", "mpeg4"), ("flv", "flv"),
    ("mpegts", "mpeg2video"), ("mpeg", "mpeg2video"), ("m4v", "mpeg4"), ("nut", "mpeg4"), ("asf", "mpeg4"),
    ("mxf", "mpeg2video"), ("h264", "libx264"), ("hevc", "libx265"), ("ivf", "libvpx"), ("webm", "libvpx"),
    ("yuv4mpegpipe", "rawvideo"), ("mp4", "libx264"), ("matroska", "ffv1"),
]  # fmt: skip


def clips() -> Iterator[tuple[str, bytes]]:
    """A clip in each container that this build of FFmpeg writes."""
    for container, codec in CONTAINERS:
        options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
        try:
            yield f"{container} {codec}", clip(container, codec, **options)
        except (ValueError, av.error.FFmpegError):
            continue


def nameless(folder: Path) -> Iterator[Case]:
    """Films that only their content shows, as files called nothing: videos on the command line."""
    films = dict(clips())
    packets = films["mpegts mpeg2video"]
    films["m2ts"] = b"".join(bytes(4) + packets[place : place + 188] for place in range(0, len(packets), 188))
    for box in (b"free", b"skip", b"wide"):
        films[f"mp4 behind {box.decode()}"] = moved(films["mp4 mpeg4"], struct.pack(">I", 24) + box + bytes(16))
    for name, data in films.items():
        for suffix in ("", ".png"):
            path = folder / f"{name.replace(' ', '_')}{suffix}"
            path.write_bytes(data)
            yield Case(name=f"{name} called {suffix or 'nothing'}", call=partial(is_video, path), right="opens")


def moved(data: bytes, first: bytes) -> bytes:
    """An MP4 behind another box: where its samples lie moves with them."""
    place = data.index(b"stco") + 8
    count = int.from_bytes(data[place : place + 4], "big")
    table = struct.unpack_from(f">{count}I", data, place + 4)
    longer = struct.pack(f">{count}I", *(offset + len(first) for offset in table))
    return first + data[: place + 4] + longer + data[place + 4 + 4 * count :]


def is_video(path: Path) -> None:
    (medium,) = open_media([str(path)], VideoOptions())
    assert isinstance(medium, Video), medium
    assert len(medium.load(num_frames=4).frames) == 4


def damaged(seed: int, count: int) -> Iterator[Case]:
    """Every container, with bytes changed or cut anywhere."""
    generator = random.Random(seed)
    for name, data in clips():
        for number in range(count):
            bad = bytearray(data)
            for _ in range(generator.choice((1, 5, 50))):
                bad[generator.randrange(len(bad))] = generator.randrange(256)
            if number % 3 == 0:
                bad = bad[: generator.randrange(1, len(bad))]
            yield Case(name=f"{name} {number}", call=partial(watch, bytes(bad)))


def watch(data: bytes, **options: Any) -> None:
    Video(data, allow_truncated=True, **options).load(num_frames=4)


def absurd_choices(seed: int, count: int) -> Iterator[Case]:
    """Numbers of frames and rates that are none, and rates that would take every memory."""
    data = clip("mp4", "mpeg4")
    rates: list[Any] = [1e9, 1e300, math.inf, -math.inf, math.nan, "3", -1, True, 10**400, 1e4, [2], b"2", 2j]
    for fps in rates:
        yield Case(name=f"fps {str(fps)[:12]}", call=partial(watch, data, fps=fps), right="refused")
        yield Case(name=f"fps {str(fps)[:12]} by default", call=partial(by_default, data, fps=fps), right="refused")
    numbers: list[Any] = [2.5, "8", 0, -1, True, 10**9, 10**30, math.inf, [8], None.__class__, b"8"]
    for number in numbers:
        yield Case(name=f"frames {str(number)[:12]}", call=partial(watch, data, num_frames=number), right="refused")
    yield Case(name="a rate of 1e-300", call=partial(watch, data, fps=1e-300), right="opens")
    yield Case(name="a rate of 999", call=partial(watch, data, fps=999.0), right="opens")


def by_default(data: bytes, fps: Any) -> None:
    Video(data).load(fps=fps)


def animations(seed: int, count: int) -> Iterator[Case]:
    """Animations of every format, stamps as they were written, the same on the command line as in Video."""
    for kind in ("GIF", "PNG", "WEBP", "AVIF"):
        for frames in (2, 3, 7):
            yield Case(name=f"{kind} {frames}", call=partial(moves, encoded(kind, frames), frames), right="opens")
        for fps in (1, 2, 5, 10):
            yield Case(name=f"{kind} at {fps}", call=partial(at, encoded(kind, 20), fps), right="opens")


def moves(data: bytes, frames: int) -> None:
    seen = Video(data).load(num_frames=frames)
    assert np.allclose(seen.timestamps, np.arange(frames) / 10), seen.timestamps
    pictures = [np.asarray(frame.convert("RGB")) for frame in seen.frames]
    assert all(not np.array_equal(one, other) for one, other in pairwise(pictures)), "nothing moves"
    assert not seen.failed


def at(data: bytes, fps: int) -> None:
    seen = Video(data).load(num_frames=64, fps=fps)
    assert np.allclose(seen.timestamps, np.arange(0, 2, 1 / fps), atol=1e-3), seen.timestamps


def odd_folders(folder: Path) -> Iterator[Case]:
    """Folders of frames whose names hold digits of other scripts."""
    for number, name in enumerate(("²3", "٣", "1²", "½", "③", "¹", "x²y10", "𝟙", "0" * 200, "৪", "a\n1")):
        inside = folder / f"folder{number}"
        inside.mkdir()
        for place in range(3):
            (inside / f"{name}{place}.png").write_bytes(encoded("PNG"))
        yield Case(
            name=f"folder of {name!r}"[:40], call=lambda inside=inside: Video(inside).load(num_frames=3), right="opens"
        )
