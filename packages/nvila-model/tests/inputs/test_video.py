"""Sampling rules by hand, and every frame of clips that show their own numbers."""

import io
import struct
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import av.filter
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nvila_model.inputs.files.display_matrix import upright
from nvila_model.inputs.files.video_file import VideoFile
from nvila_model.inputs.frame_sampling import at_rate, cut_at_rate, spread
from nvila_model.inputs.media import Image, MediaError, MediaWarning, Video
from PIL import Image as PILImage

RATE = 10
FRAMES = 40
SIZE = (96, 32)


def numbered(number: int) -> np.ndarray:
    """A frame that shows its number as six squares, bit 0 leftmost."""
    bits = np.array([number >> bit & 1 for bit in range(6)], dtype=np.uint8) * 255
    return np.broadcast_to(np.repeat(bits, SIZE[0] // 6)[None, :, None], (SIZE[1], SIZE[0], 3)).copy()


def number_of(frame: PILImage.Image) -> int:
    row = np.asarray(frame.convert("L"))[frame.height // 2]
    return sum(int(row[int((bit + 0.5) * frame.width / 6)] > 127) << bit for bit in range(6))


def numbers(video: Video, **options: object) -> list[int]:
    return [number_of(frame) for frame in video.load(**options).frames]  # pyright: ignore[reportArgumentType]


def clip(container: str, codec: str, *, frames: int = FRAMES, rate: int = RATE, sound: bool = False) -> bytes:
    """A clip in memory, a key frame every 12 frames and two B-frames between others where the codec has them."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as file:
        stream = file.add_stream(codec, rate=rate)
        stream.width, stream.height = SIZE
        stream.pix_fmt = {"gif": "rgb8", "mjpeg": "yuvj420p"}.get(codec, "yuv420p")
        stream.codec_context.gop_size = 12
        stream.codec_context.max_b_frames = 0 if codec == "mjpeg" else 2
        speech = file.add_stream("pcm_s16le", rate=8000) if sound else None
        for number in range(frames):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(number), format="rgb24")))
        file.mux(stream.encode())
        if speech is not None:
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.int16), format="s16", layout="mono")
            silence.sample_rate = 8000
            file.mux(speech.encode(silence))
            file.mux(speech.encode())
    return buffer.getvalue()


FORMATS = [
    ("mp4", "mpeg4"),
    ("mov", "mpeg4"),
    ("matroska", "mpeg4"),
    ("avi", "mjpeg"),
    ("avi", "mpeg4"),  # B-frames without time stamps
    ("mpegts", "mpeg2video"),  # no index, starts above 0 s
    ("mpeg", "mpeg2video"),  # time stamps are guessed after a jump
    ("m4v", "mpeg4"),  # bare stream
    ("gif", "gif"),
    ("matroska", "ffv1"),
]


@pytest.fixture(scope="module", params=FORMATS, ids=lambda value: "-".join(value))
def any_clip(request: pytest.FixtureRequest) -> tuple[bytes, int]:
    """A clip and its frames a second; MPEG-2 knows a few rates only."""
    container, codec = request.param
    rate = 25 if codec == "mpeg2video" else RATE
    return clip(container, codec, rate=rate), rate


def test_every_frame_can_be_reached_in_every_container(any_clip: tuple[bytes, int]) -> None:
    data, _ = any_clip
    assert numbers(Video(data), num_frames=FRAMES) == list(range(FRAMES))
    for wanted in ([0], [FRAMES - 1], [5, 6], [1, 13, 14, 38], [11, 12, 23, 24, 35]):
        with VideoFile(data, "clip") as video:
            found = [(index, number_of(frame)) for index, frame in video.read(wanted) if frame is not None]
        assert found == [(index, index) for index in wanted]


def test_time_stamps_are_seconds_from_the_first_frame(any_clip: tuple[bytes, int]) -> None:
    data, rate = any_clip
    with VideoFile(data, "clip") as video:
        assert np.allclose(video.times, np.arange(FRAMES) / rate, atol=1e-3)
    frames = Video(data).load(num_frames=3)
    assert np.allclose(frames.timestamps, [0, 20 / rate, 39 / rate], atol=1e-3)  # 19.5 rounds to even


def test_a_path_is_read_as_its_bytes_are(tmp_path: Path) -> None:
    path = tmp_path / "clip %03d.mp4"
    path.write_bytes(clip("mp4", "mpeg4"))
    for source in (path, str(path), path.read_bytes()):
        assert numbers(Video(source), num_frames=5) == [0, 10, 20, 29, 39]


def test_frames_by_rate() -> None:
    video = Video(clip("mp4", "mpeg4"))
    assert numbers(video, fps=2, num_frames=64) == [0, 5, 10, 15, 20, 25, 30, 35]
    assert numbers(video, fps=2, num_frames=4) == [0, 13, 26, 39]  # too many: spread over the whole
    assert numbers(video, fps=2, num_frames=4, cut_at_limit=True) == [0, 5, 10, 15]
    assert numbers(video, fps=1000, num_frames=64) == list(range(FRAMES))


def test_a_video_says_for_itself_how_it_is_sampled() -> None:
    data = clip("mp4", "mpeg4")
    assert numbers(Video(data, num_frames=2), num_frames=8) == [0, 39]
    assert numbers(Video(data, fps=1, num_frames=9), num_frames=2) == [0, 10, 20, 30]
    assert numbers(Video(data, fps=0), num_frames=2, fps=5) == [0, 39]


def test_more_frames_than_there_are_repeat() -> None:
    frames = Video(clip("mp4", "mpeg4", frames=3)).load(num_frames=5)
    assert [number_of(frame) for frame in frames.frames] == [0, 0, 1, 2, 2]
    assert np.allclose(frames.timestamps, [0, 0, 0.1, 0.2, 0.2])


def test_sound_that_outlasts_the_pictures_is_no_damage() -> None:
    assert len(Video(clip("matroska", "mpeg4", frames=4, sound=True)).load(num_frames=4).frames) == 4


# FFmpeg's display matrices of the eight orientations, and the filters that its own program turns such a film by.
ORIENTATIONS = {
    (1, 0, 0, 1): "null",
    (-1, 0, 0, 1): "hflip",
    (1, 0, 0, -1): "vflip",
    (-1, 0, 0, -1): "hflip,vflip",
    (0, 1, -1, 0): "transpose=clock",
    (0, -1, 1, 0): "transpose=cclock",
    (0, 1, 1, 0): "transpose=cclock_flip",
    (0, -1, -1, 0): "transpose=clock_flip",
}


def filtered(picture: PILImage.Image, filters: str) -> PILImage.Image:
    graph = av.filter.Graph()
    frame = av.VideoFrame.from_image(picture)
    nodes = [graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1))]
    for name, _, argument in (part.partition("=") for part in filters.split(",")):
        nodes.append(graph.add(name, argument))
    nodes.append(graph.add("buffersink"))
    for one, other in pairwise(nodes):
        one.link_to(other)
    graph.configure()
    graph.push(frame)
    return graph.pull().to_image()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(("matrix", "filters"), ORIENTATIONS.items(), ids=ORIENTATIONS.values())
def test_a_turned_frame_is_shown_as_ffmpeg_shows_it(matrix: tuple[int, int, int, int], filters: str) -> None:
    a, b, c, d = (value * 65536 for value in matrix)
    stored = PILImage.fromarray(np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8))
    shown = upright(stored, struct.pack("=9i", a, b, 0, c, d, 0, 0, 0, 1 << 30))
    assert shown.size == filtered(stored, filters).size
    assert shown.tobytes() == filtered(stored, filters).tobytes()


def test_a_matrix_that_turns_nothing_leaves_the_frame() -> None:
    stored = PILImage.fromarray(numbered(13))
    for matrix in (None, b"", b"short", struct.pack("=9i", *[0] * 9)):
        assert upright(stored, matrix) is stored
    slanted = upright(stored, struct.pack("=9i", 46341, 46341, 0, -46341, 46341, 0, 0, 0, 1 << 30))
    assert slanted.size == stored.size  # as FFmpeg's rotate filter, within the frame


# Pictures instead of a file


def folder_of(path: Path, count: int, name: str = "frame_{}.png") -> Path:
    path.mkdir()
    for number in range(count):
        PILImage.fromarray(numbered(number)).save(path / name.format(number))
    return path


def test_a_folder_is_read_in_natural_order(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "clip", 12)
    (folder / "notes.json").write_text("{}")
    (folder / ".hidden.png").write_text("")
    frames = Video(folder).load(num_frames=12)
    assert [number_of(frame) for frame in frames.frames] == list(range(12))
    assert frames.timestamps == tuple(range(12))


def test_lists_and_arrays_are_videos(tmp_path: Path) -> None:
    pixels = np.stack([numbered(number) for number in range(9)])
    path = tmp_path / "frame.png"
    PILImage.fromarray(numbered(8)).save(path)
    mixed = [Image(pixels[0]), *(PILImage.fromarray(frame) for frame in pixels[1:7]), pixels[7], path]
    for source in (pixels, mixed):
        assert numbers(Video(source), num_frames=5) == [0, 2, 4, 6, 8]


# What goes wrong


def test_a_frame_that_does_not_decode_is_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "clip", 6, "{}.png")
    (folder / "2.png").write_bytes(b"broken")
    with pytest.warns(MediaWarning, match=r"1 of 6 chosen frames of .* \(numbers 2\): the other 5 are used"):
        frames = Video(folder).load(num_frames=6)
    assert frames.failed == (2,)
    assert frames.timestamps == (0, 1, 3, 4, 5)


def test_a_damaged_packet_is_named() -> None:
    data = bytearray(clip("avi", "mjpeg", frames=10))
    starts = [place for place in range(len(data)) if data[place : place + 3] == b"\xff\xd8\xff"]
    assert len(starts) == 10
    data[starts[4] : starts[5] - 8] = bytes(starts[5] - 8 - starts[4])
    with pytest.warns(MediaWarning, match=r"1 of 10 chosen frames of the video cannot be decoded \(numbers 4\)"):
        frames = Video(bytes(data)).load(num_frames=10)
    assert [number_of(frame) for frame in frames.frames] == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert frames.failed == (4,)


def test_nothing_that_decodes_is_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    (folder / "0.png").write_bytes(b"broken")
    with pytest.raises(MediaError, match=r"no chosen frame of .*clip can be decoded \(numbers 0, 0\)|numbers 0\)"):
        Video(folder).load(num_frames=2)


@pytest.mark.parametrize(("container", "codec"), [("avi", "mjpeg"), ("matroska", "mpeg4"), ("mp4", "mpeg4")])
def test_a_file_that_is_cut_short_is_refused(tmp_path: Path, container: str, codec: str) -> None:
    path = tmp_path / "clip"
    data = clip(container, codec)
    path.write_bytes(data[: len(data) * 2 // 3])
    with pytest.raises(MediaError, match="is cut short") as refusal:
        Video(path).load()
    assert "\n" not in str(refusal.value)


def test_what_is_left_of_a_cut_file_can_be_asked_for() -> None:
    data = clip("avi", "mjpeg")
    with pytest.raises(MediaError, match=r"can be read; allow_truncated=True \(--allow-truncated\) uses those"):
        Video(data[: len(data) * 2 // 3]).load()
    frames = Video(data[: len(data) * 2 // 3], allow_truncated=True).load(num_frames=4)
    found = [number_of(frame) for frame in frames.frames]
    assert found[0] == 0
    assert 10 < found[-1] < 30
    assert np.allclose(frames.timestamps, np.array(found) / RATE)


def test_a_playlist_does_not_open_other_files(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(clip("mp4", "mpeg4"))
    entry = f"file://{tmp_path}/clip.mp4"
    playlist = tmp_path / "list.m3u8"
    playlist.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:4,\n{entry}\n#EXT-X-ENDLIST\n")
    concatenation = tmp_path / "list.ffconcat"
    concatenation.write_text("ffconcat version 1.0\nfile clip.mp4\n")
    for path in (playlist, concatenation):
        for source in (path, path.read_bytes()):
            with pytest.raises(MediaError, match="is not a video or is cut short"):
                Video(source).load()


def sound() -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="wav") as file:
        stream = file.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        file.mux(stream.encode(frame))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.mp4", b"", r"empty.mp4 is empty \(0 bytes\): pass a video file"),
        ("sound.wav", sound(), "sound.wav is sound: it has no video stream"),
        ("text.mp4", b"words, words\n" * 99, "text.mp4 is not a video or is cut short"),
        ("text.txt", b"words, words\n" * 99, "text.txt is (text, )?not a video"),
    ],
)
def test_a_bad_file_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(MediaError, match=message):
        Video(path).load()


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("no/such.mp4", {}, "no file at no/such.mp4"),
        (b"", {}, "the video given as bytes is empty"),
        ([], {}, "the video holds no frames: expected image files or images"),
        (7, {}, "cannot take a video from int: pass a path, bytes, a folder or a list of images"),
        (np.zeros((4, 4, 3), np.uint8), {}, r"a video array must be uint8 \[frames, h, w, 3\], not \[4, 4, 3\]"),
        (
            [np.zeros((4, 4, 3), np.uint8)],
            {"fps": 2},
            r"fps is 2, but a sequence of images has no clock: pass num_frames \(--frames\)",
        ),
    ],
)
def test_a_bad_source_is_refused(source: object, options: dict[str, float], message: str) -> None:
    with pytest.raises(MediaError, match=message):
        Video(source, **options).load()  # pyright: ignore[reportArgumentType]


def test_a_folder_without_frames_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("no frame")
    with pytest.raises(MediaError, match="holds no frames"):
        Video(tmp_path).load()


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(MediaError, match="num_frames is 0: a video needs at least 1 frame"):
        Video("clip.mp4", num_frames=0)
    with pytest.raises(MediaError, match="fps is -1: pass a rate above 0"):
        Video("clip.mp4", fps=-1)


# The rules alone


def test_spread_rounds_halves_to_even() -> None:
    assert spread(2, 5) == [0, 0, 0, 1, 1]
    assert spread(7, 5) == [0, 2, 3, 4, 6]
    assert spread(100, 1) == [0]


@given(count=st.integers(1, 500), num_frames=st.integers(2, 64))
def test_spread_keeps_both_ends_and_order(count: int, num_frames: int) -> None:
    chosen = spread(count, num_frames)
    assert len(chosen) == num_frames
    assert (chosen[0], chosen[-1]) == (0, count - 1)
    assert chosen == sorted(chosen)


@given(
    gaps=st.lists(st.integers(1, 50), min_size=1, max_size=80), fps=st.floats(0.1, 200), num_frames=st.integers(1, 40)
)
def test_by_rate_each_frame_stands_once_and_within_the_limit(gaps: list[int], fps: float, num_frames: int) -> None:
    times = np.cumsum(gaps) / 100
    chosen = at_rate(times.tolist(), fps=fps, num_frames=num_frames)
    assert chosen[0] == 0
    assert len(chosen) <= num_frames
    assert chosen == sorted(chosen)
    if len(gaps) >= num_frames:
        assert len(set(chosen)) == len(chosen)


@pytest.mark.parametrize("fps", [1, 2, 3, 5, 7, 30])
def test_by_rate_the_frame_on_screen_is_chosen(fps: int) -> None:
    times = [frame / 30 for frame in range(300)]
    expected = [second * 30 // fps for second in range(fps * 10)]
    assert at_rate(times, fps=fps, num_frames=1000) == [frame for frame in expected if frame < 300]


def test_the_reference_stops_at_the_limit_and_repeats() -> None:
    assert cut_at_rate(37, rate=10, fps=25, num_frames=5) == [0, 0, 0, 1, 1]
    assert cut_at_rate(37, rate=0, fps=25, num_frames=5) == []


def test_the_rules_refuse_nothing_to_choose_from() -> None:
    with pytest.raises(ValueError, match="a video of 0 frames"):
        spread(0, 3)
    with pytest.raises(ValueError, match="num_frames is 0, at least 1 is needed"):
        spread(3, 0)
    with pytest.raises(ValueError, match="fps is 0, not above 0"):
        at_rate([0.0], fps=0, num_frames=3)
