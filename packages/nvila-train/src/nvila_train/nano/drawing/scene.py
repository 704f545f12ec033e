"""What a drawing hands over: a picture or a clip, its questions, and where everything stands in it."""

import io
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
import PIL.Image

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of the picture; right and bottom are exclusive."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A question about a scene and its one exact answer."""

    question: str
    answer: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Glyph:
    """One printed character; the box spans its advance width and at least the capital height."""

    char: str
    box: Box


@dataclass(frozen=True, kw_only=True, slots=True)
class Object:
    """One coloured thing (``circle``, ``bar``, ``slice``, ...) and the pixels that it covers."""

    name: str
    colour: str
    box: Box


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Clip:
    """Moving pictures.

    Args:
        frames: uint8 ``[t, h, w, 3]``, height and width even (the codec halves its colour planes).
        fps: frames a second.
    """

    frames: np.ndarray
    fps: int

    def encode(self) -> bytes:
        """The clip as an MPEG-4 video file in an MP4 container."""
        count, height, width, _ = self.frames.shape
        sink = io.BytesIO()
        with av.open(sink, mode="w", format="mp4") as container:
            stream = container.add_stream("mpeg4", rate=self.fps)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.time_base = Fraction(1, self.fps)
            stream.codec_context.qmin, stream.codec_context.qmax = 2, 4
            stream.thread_count = 1
            for index in range(count):
                frame = av.VideoFrame.from_ndarray(self.frames[index], format="rgb24")
                frame.pts = index
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return sink.getvalue()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Scene:
    """One drawing with everything known about it.

    Args:
        kind: one of ``KINDS``.
        image: the RGB picture; None for clips.
        clip: the moving pictures; None for all other kinds.
        questions: two to six questions with exact answers.
        text: the scene written out, for pretraining on text alone.
        glyphs: every printed character, in reading order.
        objects: every coloured shape, in drawing order.
    """

    kind: str
    image: PIL.Image.Image | None = None
    clip: Clip | None = None
    questions: tuple[Question, ...]
    text: str
    glyphs: tuple[Glyph, ...] = ()
    objects: tuple[Object, ...] = ()
