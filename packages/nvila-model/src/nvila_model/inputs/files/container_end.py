"""Whether a video file reaches the end that its own outer structure announces.

The announced duration alone cannot tell a file that was cut from one whose last picture is held for a while;
the sizes of the outermost boxes can.
"""

from typing import BinaryIO

_TAIL = 64


def reaches_end(file: BinaryIO) -> bool | None:
    """True if the outermost parts of an MP4, Matroska or AVI are all there; None where the format does not say.

    A file that ends in nothing but zeros was reserved and never filled: False.
    """
    size = file.seek(0, 2)
    file.seek(max(0, size - _TAIL))
    if not file.read(_TAIL).strip(b"\0"):
        return False
    file.seek(0)
    head = file.read(12)
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return _ebml(file, size)
    if head[:4] == b"RIFF":
        return _chunks(file, size, "little", payload_first=False)
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"styp", b"moof", b"pnot"):
        return _chunks(file, size, "big", payload_first=True)
    return None


def _chunks(file: BinaryIO, size: int, order: str, *, payload_first: bool) -> bool:
    """Boxes of MP4 (length, with itself, then name) or chunks of RIFF (name, then length without both)."""
    place = 0
    while place + 8 <= size:
        file.seek(place)
        head = file.read(16)
        number = head[:4] if payload_first else head[4:8]
        length = int.from_bytes(number, order)  # pyright: ignore[reportArgumentType] - "big" or "little"
        if not payload_first:
            if head[:4] != b"RIFF":  # an index or padding after the last part
                return True
            length += 8 + length % 2
        elif length == 1:
            length = int.from_bytes(head[8:16], "big")
        elif length == 0:
            return True
        if length < 8:
            return False
        place += length
    return place <= size + 1


def _ebml(file: BinaryIO, size: int) -> bool | None:
    """Matroska is a header and one segment; a size of ones only stands for "until the end"."""
    file.seek(4)
    length, _ = _number(file)
    file.seek(length, 1)
    if file.read(4) != b"\x18\x53\x80\x67":
        return None
    length, unknown = _number(file)
    return None if unknown else file.tell() + length <= size


def _number(file: BinaryIO) -> tuple[int, bool]:
    """A number whose leading zeros say how many bytes it has, and whether all its other bits are ones."""
    first = file.read(1)[0:1]
    if not first or not first[0]:
        return 0, True
    width = 9 - first[0].bit_length()
    rest = file.read(width - 1)
    value = int.from_bytes(bytes([first[0] & (255 >> width)]) + rest, "big")
    return value, value == (1 << 7 * width) - 1
