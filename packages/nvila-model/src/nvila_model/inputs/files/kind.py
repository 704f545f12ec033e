"""What a file is by its first bytes, whatever it is called."""

from typing import Literal

Kind = Literal["image", "animation", "video", "sound", "unknown"]

#: Bytes that ``kind_of`` wants to see: a transport stream shows itself by its third packet.
HEAD = 4096

_IMAGES = (
    b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"\0\0\1\0", b"icns", b"8BPS", b"qoif",
    b"P1\n", b"P2\n", b"P3\n", b"P4\n", b"P5\n", b"P6\n", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51", b"DDS ",
    b"%!PS-Adobe", b"\xc5\xd0\xd3\xc6", b"BLP1", b"BLP2", b"\xd7\xcd\xc6\x9a", b"\x0a\x05\x01\x08", b"FTEX",
)  # fmt: skip
_ANIMATIONS = (b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a")  # and WebP and AVIF, below: stills are among them
_VIDEOS = (
    b"\x1a\x45\xdf\xa3",  # Matroska, WebM
    b"FLV\1", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11",  # ASF
    b".RMF", b"DKIF", b"YUV4MPEG2", b"nut/multimedia container\0", b"\0\0\1\xba", b"\0\0\1\xb3",
    b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x02",  # MXF
    b"\x06\x0e\x2b\x34\x02\x05\x01\x01\x0d\x01\x03",
    b"\0\0\1\xb0", b"\0\0\1\xb5", b"\0\0\1\xb6", b"\0\0\1\x0f", b"\0\0\1\0\0\0\1\x20", b"\0\0\1\x20",  # MPEG-4, VC-1
)  # fmt: skip
_SOUNDS = (
    b"ID3", b"fLaC", b"#!AMR", b"MThd", b"caff", b"wvpk", b"MAC ", b"TTA1", b".snd", b"MPCK", b"\x0bw", b"DSD ",
)  # fmt: skip
_BOXES = {b"ftyp", b"free", b"skip", b"wide", b"mdat", b"moov", b"moof", b"styp", b"pnot", b"sidx", b"uuid", b"junk"}
_STILL_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"miaf", b"jxl ")
_SOUND_BRANDS = (b"M4A ", b"M4B ", b"M4P ", b"F4A ")
_RIFF: dict[bytes, Kind] = {b"AVI ": "video", b"AVIX": "video", b"WEBP": "animation", b"WAVE": "sound"}
_OGG_FILMS = (b"\x80theora", b"BBCD\0", b"\x80daala", b"OVP80", b"\1video\0", b"fishead\0")


def kind_of(start: bytes) -> Kind:
    """What a file is, by its first ``HEAD`` bytes.

    "animation" stands for PNG, GIF, WebP and AVIF, which hold one picture or several; "unknown" for what
    only a reader can tell.
    """
    if start.startswith(_ANIMATIONS):
        return "animation"
    if start[:4] == b"RIFF" and start[8:12] in _RIFF:
        return _RIFF[start[8:12]]
    if start[4:8] == b"ftyp":
        return _brand(start)
    if start[4:8] in _BOXES and int.from_bytes(start[:4], "big") not in range(2, 8):
        return "video"
    if start.startswith(b"OggS"):
        return "video" if any(mark in start[:512] for mark in _OGG_FILMS) else "sound"
    if start.startswith(_VIDEOS) or _is_transport_stream(start) or _is_annex_b(start):
        return "video"
    if start.startswith(_IMAGES):
        return "image"
    if start.startswith(_SOUNDS) or (start[:4] == b"FORM" and start[8:12] in (b"AIFF", b"AIFC")):
        return "sound"
    # MPEG audio and ADTS: eleven or twelve bits set, then a layer, rate and frequency that exist.
    if start[:1] == b"\xff" and len(start) > 3 and start[1] & 0xE0 == 0xE0 and start[1] not in (0xFE, 0xFF):
        return "sound"
    return "unknown"


def _brand(start: bytes) -> Kind:
    """MP4 and its relatives, by their brands: films, but for pictures and sound."""
    if start[8:12] in (b"avif", b"avis"):
        return "animation"
    if start[8:12] in _STILL_BRANDS:
        size = int.from_bytes(start[:4], "big")
        compatible = {start[place : place + 4] for place in range(16, min(size, len(start)), 4)}
        return "animation" if compatible & {b"avif", b"avis"} else "image"
    return "sound" if start[8:12] in _SOUND_BRANDS else "video"


def _is_transport_stream(start: bytes) -> bool:
    """Packets of 188 bytes, with 4 of time before each (Blu-ray) or 16 of correction after (DVB)."""
    for first, step in ((0, 188), (4, 192), (0, 204)):
        marks = start[first : first + 3 * step : step]
        if len(start) > first + step and marks.strip(b"\x47") == b"":
            return True
    return False


def _is_annex_b(start: bytes) -> bool:
    """A bare H.264 or H.265 stream: a start code, then a unit that a stream begins with."""
    if not start.startswith((b"\0\0\0\1", b"\0\0\1")):
        return False
    unit = start[start.index(1) + 1 :][:2]
    h264 = unit[:1] in (b"\x67", b"\x27", b"\x47", b"\x09", b"\x06")
    h265 = unit in (b"\x40\1", b"\x42\1", b"\x44\1", b"\x46\1", b"\x4e\1")
    return h264 or h265
