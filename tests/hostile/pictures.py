"""Hostile pictures: broken EXIF, damage, cuts, bombs, and what is no file at all."""

import io
import os
import random
import socket
import struct
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from case import Case
from nvila_model.inputs.media import Image, Video
from nvila_tiling import SingleTile
from PIL import Image as PILImage

TILE = SingleTile(tile=28)


def see(source: Any, *, size: tuple[int, int] | None = None) -> None:
    """Load a picture and cut its tile, as every command does."""
    picture = Image(source).load()
    TILE(picture)
    assert size is None or picture.size == size, picture.size


def drawn(seed: int = 0, size: tuple[int, int] = (48, 32)) -> PILImage.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8)
    return PILImage.fromarray(pixels).resize(size)


def encoded(kind: str, frames: int = 1, **options: Any) -> bytes:
    buffer = io.BytesIO()
    more = [drawn(seed) for seed in range(1, frames)]
    if more:
        options |= {"save_all": True, "append_images": more}
        options |= {"duration": 100} if kind != "MPO" else {}
    drawn().save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, rows: bytes = b"", notes: bytes = b"", mode: int = 0) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, mode, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + notes + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def broken_exif(seed: int, count: int) -> Iterator[Case]:
    """Sound pixels with metadata that is none; one orientation can be read at most."""
    generator = random.Random(seed)
    bodies = [b"garbage", b"", b"Exif\0\0", b"Exif\0\0II*\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff"]
    bodies += [b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x09\0" + b"\1\0\0\0\6\0\0\0"]
    bodies += [b"Exif\0\0II*\0" + generator.randbytes(generator.randrange(1, 60)) for _ in range(count)]
    for number, body in enumerate(bodies):
        yield Case(
            name=f"PNG eXIf {number}", call=partial(see, png_with(chunk(b"eXIf", body)), size=(48, 32)), right="opens"
        )
        text = (
            b"Raw profile type exif\0"
            + b"\nexif\n      %d\n" % len(body)
            + body.hex().encode()[: generator.randrange(1, 99)]
        )
        yield Case(
            name=f"PNG raw profile {number}",
            call=partial(see, png_with(chunk(b"tEXt", text)), size=(48, 32)),
            right="opens",
        )
        for kind in ("WEBP", "JPEG"):
            if body:
                data = encoded(kind, exif=body)
                yield Case(name=f"{kind} EXIF {number}", call=partial(see, data), right="opens")


def png_with(notes: bytes) -> bytes:
    data = encoded("PNG")
    return data[:33] + notes + data[33:]


def notes_over_a_limit(seed: int, count: int) -> Iterator[Case]:
    """Sound pixels beside text or a colour profile that unpacks to megabytes, before or after them."""
    for megabytes in range(2, 5 + count // 4):
        packed = zlib.compress(b"a" * (megabytes << 20), 9)
        for kind, body in (
            (b"zTXt", b"note\0\0" + packed),
            (b"iTXt", b"note\0\1\0\0\0" + packed),
            (b"iCCP", b"profile\0\0" + packed),
        ):
            data = png_with(chunk(kind, body))
            yield Case(name=f"{kind.decode()} {megabytes} MB", call=partial(see, data, size=(48, 32)), right="opens")
        late = encoded("PNG")
        late = late[:-12] + chunk(b"zTXt", b"note\0\0" + packed) + late[-12:]
        yield Case(name=f"late zTXt {megabytes} MB", call=partial(see, late, size=(48, 32)), right="opens")


FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "AVIF", "BMP", "TIFF", "ICO", "ICNS", "PPM", "TGA", "PCX", "SGI", "DDS", "IM",
           "JPEG2000", "BLP", "EPS")  # fmt: skip


def damaged(seed: int, count: int) -> Iterator[Case]:
    """Every format that Pillow writes, with bytes changed, or cut anywhere."""
    generator = random.Random(seed)
    for kind in FORMATS:
        data = blp() if kind == "BLP" else encoded(kind)
        for number in range(count):
            bad = bytearray(data)
            for _ in range(generator.choice((1, 3, 20))):
                bad[generator.randrange(4, len(bad))] = generator.randrange(256)
            if number % 3 == 0:
                bad = bad[: generator.randrange(1, len(bad))]
            yield Case(name=f"{kind} {number}", call=partial(see, bytes(bad)))


def blp() -> bytes:
    buffer = io.BytesIO()
    drawn().convert("P").save(buffer, "BLP")
    return buffer.getvalue()


def cut_short(seed: int, count: int) -> Iterator[Case]:
    """Files of several pictures that end before their last: refused, as a cut PNG is."""
    generator = random.Random(seed)
    whole = {
        "APNG": encoded("PNG", 6), "GIF": encoded("GIF", 6), "WEBP": encoded("WEBP", 6), "AVIF": encoded("AVIF", 6),
        "MPO": encoded("MPO", 3), "ICNS": icns(), "ICO": encoded("ICO", sizes=[(16, 16), (32, 32)]),
    }  # fmt: skip
    for kind, data in whole.items():
        yield Case(name=f"{kind} whole", call=partial(see, data), right="opens")
        for _ in range(count):
            cut = data[: generator.randrange(len(data) // 3, len(data) - 1)]
            yield Case(name=f"{kind} cut at {len(cut)} of {len(data)}", call=partial(see, cut), right="refused")


def icns() -> bytes:
    buffer = io.BytesIO()
    drawn(size=(64, 64)).save(buffer, "ICNS")
    return buffer.getvalue()


def bombs(seed: int, count: int) -> Iterator[Case]:
    """Few bytes that ask for much: refused before anything is decoded."""
    sizes = [(1, 4_000_000), (4_000_000, 1), (1, 170_000_000), (100_000, 100_000), (2**31 - 1, 1), (65_536, 2_700)]
    sizes += [(30_000 + 1000 * number, 30_000) for number in range(count)]
    for width, height in sizes:
        rows = bytes(2) * min(height, 4_000_000) if width == 1 else b""
        yield Case(name=f"PNG {width} x {height}", call=partial(see, png(width, height, rows)), right="refused")
    for side in (20_000, 50_000, 65_535):
        gif = b"GIF89a" + struct.pack("<HH", side, side) + b"\x80\0\0" + bytes(6) + b"\x2c" + bytes(4)
        gif += struct.pack("<HH", side, side) + b"\0\2\2\x4c\1\0\x3b"
        yield Case(name=f"GIF of {side}", call=partial(see, gif), right="refused")
        bmp = b"BM" + struct.pack("<IHHIIiiHHIIIIII", 54, 0, 0, 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
        yield Case(name=f"BMP of {side}", call=partial(see, bmp), right="refused")
    for side in (400, 900):
        still = PILImage.new("RGB", (side, side))
        buffer = io.BytesIO()
        frames = [PILImage.new("RGB", (side, side), (shade % 256, 0, 0)) for shade in range(200)]
        still.save(buffer, "WEBP", save_all=True, append_images=frames, duration=20, lossless=True)
        data = buffer.getvalue()
        yield Case(
            name=f"WebP of 201 frames of {side}", call=lambda data=data: Video(data).load(num_frames=4), right="opens"
        )


def no_files(folder: Path) -> Iterator[Case]:
    """Paths of what is no regular file, or of nothing."""
    os.mkfifo(folder / "pipe.png")
    os.mkfifo(folder / "pipe.mp4")
    (folder / "empty.png").touch()
    (folder / "dangling.png").symlink_to(folder / "nowhere")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(folder / "s.png"))
    with (folder / "sparse.png").open("wb") as file:
        file.truncate(8 << 30)
    with (folder / "sparse.mp4").open("wb") as file:
        file.truncate(8 << 30)
    paths = ["/dev/zero", "/dev/random", "/dev/null", "/dev/stdin", str(folder), "/proc/self/mem", "", ".", "a" * 300,
             "a\0b", "\udce9.png", "x/" * 3000, "https:/x", "file:///etc/passwd", "~/x.png"]  # fmt: skip
    paths += [str(path) for path in sorted(folder.iterdir())]
    for path in paths:
        yield Case(name=f"Image {str(path)[:40]!r}", call=partial(see, path), right="refused")
        yield Case(
            name=f"Video {str(path)[:40]!r}", call=partial(watch, path), right="either" if path == "." else "refused"
        )


def watch(source: Any) -> None:
    Video(source).load(num_frames=2)
