"""Images from every source, and one sentence for whatever is wrong with one."""

import io
import struct
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from nvila_model.inputs.media import Image, MediaError, Video
from nvila_model.inputs.web.fetch import fetch
from PIL import Image as PILImage


def picture(width: int = 7, height: int = 5, mode: str = "RGB") -> PILImage.Image:
    shape = (height, width, 3)
    pixels = np.random.default_rng(width * height).integers(0, 256, shape, dtype=np.uint8)
    return PILImage.fromarray(pixels).convert(mode)


def encoded(image: PILImage.Image, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def header_of(width: int, height: int) -> bytes:
    """A PNG that announces a size and holds next to nothing."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P"])
def test_every_source_gives_the_same_picture(tmp_path: Path, mode: str) -> None:
    image = picture(mode=mode)
    path = tmp_path / "picture.png"
    path.write_bytes(encoded(image))
    for source in (path, str(path), path.read_bytes(), bytearray(path.read_bytes()), image):
        loaded = Image(source).load()
        assert loaded.mode == mode
        assert loaded.tobytes() == image.tobytes()


@pytest.mark.parametrize("shape", [(5, 7, 3), (5, 7, 4), (5, 7)])
def test_an_array_is_a_picture(shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    assert np.array_equal(np.asarray(Image(array).load()), array)
    assert np.array_equal(np.asarray(Image(array[:, ::-1]).load()), array[:, ::-1])


def test_a_large_photograph_is_opened_without_a_warning() -> None:
    assert Image(encoded(PILImage.new("1", (12000, 8000)))).load().size == (12000, 8000)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"bad.png is empty \(0 bytes\): pass an image file"),
        (b"just some text\n", r"bad.png is not an image \(it begins with b'just some text\\n'\): convert it"),
        (encoded(picture(60, 50))[:-200], "bad.png is cut short or corrupt: "),
        (encoded(picture(60, 50), "JPEG")[:-200], "bad.png is cut short or corrupt: "),
        (encoded(picture(60, 50), "GIF")[:-1500], "bad.png is cut short or corrupt: "),
        (encoded(picture())[:20], "bad.png (is not an image|has a broken image header|is cut short)"),
        (header_of(100_000, 100_000), r"bad.png unpacks to more than 178956970 pixels \(.*Limits.pixels\): shrink it"),
        (header_of(100, 100), "bad.png is cut short or corrupt: "),
        (header_of(0, 100), "bad.png (is not an image|has a broken image header|is cut short)"),
    ],
)
def test_a_bad_file_is_refused_in_one_sentence(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(MediaError, match=message) as refusal:
        Image(path).load()
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such/picture.png", "no file at no/such/picture.png"),
        (3.5, "cannot take an image from float"),
        (np.zeros((4, 4, 3), np.float32), r"must be uint8 \[h, w, 3\].*, not float32 \[4, 4, 3\]"),
        (np.zeros((4, 4, 2), np.uint8), r"not uint8 \[4, 4, 2\]"),
        (np.zeros((0, 4, 3), np.uint8), r"not uint8 \[0, 4, 3\]"),
        (b"", "the image given as bytes is empty"),
        ("file:///etc/hostname", "no file at"),
    ],
)
def test_a_bad_source_is_refused(source: object, message: str) -> None:
    with pytest.raises(MediaError, match=message):
        Image(source).load()


def test_a_folder_is_not_an_image(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="is a folder, not an image: pass Video"):
        Image(tmp_path).load()


class Pages(BaseHTTPRequestHandler):
    """A site with a picture, a page, redirects that end well and badly, and one that never answers."""

    picture = encoded(picture())
    wait = threading.Event()

    def do_GET(self) -> None:
        moves = {"/moved": "/picture.png", "/to-file": "file:///etc/hostname", "/to-ftp": "ftp://127.0.0.1/x"}
        if self.path in moves:
            self.send_response(302)
            self.send_header("Location", moves[self.path])
            self.end_headers()
        elif self.path == "/slow":
            self.wait.wait(5)
        elif self.path in ("/picture.png", "/page"):
            body = self.picture if self.path == "/picture.png" else b"<html></html>"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        else:
            self.send_error(404)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    Pages.wait.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.mark.parametrize("page", ["/picture.png", "/moved"])
def test_an_address_is_a_source(site: str, page: str) -> None:
    assert Image(site + page, allow_private=True).load().tobytes() == picture().tobytes()


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("/gone.png", "/gone.png answered 404 Not Found"),
        ("/page", r"/page is not an image: convert it"),  # nothing of what was answered is shown
        ("/to-file", r"/to-file answered 302, a redirect to no http\(s\) address"),
        ("/to-ftp", r"/to-ftp answered 302, a redirect to no http\(s\) address"),
    ],
)
def test_an_address_that_leads_nowhere_is_refused(site: str, page: str, message: str) -> None:
    with pytest.raises(MediaError, match=message):
        Image(site + page, allow_private=True).load()


def test_a_download_has_limits(site: str) -> None:
    size = len(Pages.picture)
    assert fetch(f"{site}/picture.png", limit=size, allow_private=True) == Pages.picture
    with pytest.raises(MediaError, match=rf"larger than {size - 1} bytes \(Limits.fetch_bytes\): download it"):
        fetch(f"{site}/picture.png", limit=size - 1, allow_private=True)
    with pytest.raises(MediaError, match=r"/slow did not answer within 0.1 s"):
        fetch(f"{site}/slow", seconds=0.1, allow_private=True)
    with pytest.raises(MediaError, match=r"cannot fetch http://127.0.0.1:9/"):
        fetch("http://127.0.0.1:9/", seconds=1, allow_private=True)
    with pytest.raises(MediaError, match="is not an http or https address"):
        fetch("ftp://127.0.0.1/x")


def test_a_video_can_be_at_an_address(site: str) -> None:
    with pytest.raises(MediaError, match=r"/page is not a video or is cut short"):
        Video(f"{site}/page", allow_private=True).load()
