"""When each frame of an animation appears, and whether the file holds all that it announces, by its blocks.

Pillow says how long a frame lasts only after decoding it and all before it. The containers say so in a few
bytes a frame, so that frames can be chosen before any is decoded, and so that a file which was cut between two
frames is known as such.
"""

from dataclasses import dataclass

from nvila_model.inputs.files.boxes import box_children, find_box, top_boxes

#: Seconds for which a frame without a duration is shown, and GIF's shortest that is taken at its word: both as
#: browsers have it.
NO_DURATION = 0.1
SHORTEST_GIF = 0.02


@dataclass(frozen=True, kw_only=True)
class AnimationIndex:
    """The frames of a file that may be an animation.

    Attributes:
        durations: seconds, one a frame; at most one for a still picture.
        whole: the file reaches its own end.
        skipped: pictures before the first frame that are not part of the animation.
    """

    durations: tuple[float, ...]
    whole: bool
    skipped: int = 0


def read_index(data: bytes) -> AnimationIndex:
    """The frames of a PNG, GIF, WebP or AVIF; one for other files, of which icons too may lack a part."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return _png(data)
    if data.startswith((b"GIF87a", b"GIF89a")):
        return _gif(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp(data)
    if data[4:8] == b"ftyp":
        return _avif(data)
    if data.startswith(b"icns"):
        return AnimationIndex(durations=(NO_DURATION,), whole=int.from_bytes(data[4:8], "big") <= len(data))
    if data.startswith(b"\0\0\1\0"):
        return AnimationIndex(durations=(NO_DURATION,), whole=_icon_end(data) <= len(data))
    return AnimationIndex(durations=(NO_DURATION,), whole=True)


def _png(data: bytes) -> AnimationIndex:
    durations: list[float] = []
    announced = skipped = 0
    ended = False
    place = 8
    while place + 8 <= len(data) and not ended:
        length, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        body = data[place + 8 : place + 8 + min(length, 26)]
        if kind == b"acTL":
            announced = int.from_bytes(body[:4], "big")
        elif kind == b"fcTL" and len(body) == 26:
            above, below = int.from_bytes(body[20:22], "big"), int.from_bytes(body[22:24], "big") or 100
            durations.append(above / below or NO_DURATION)
        elif kind == b"IDAT" and announced and not durations:
            skipped = 1
        place += length + 12
        ended = kind == b"IEND" and place <= len(data)
    if not announced:  # a still picture: its pixels show whether they are all there
        return AnimationIndex(durations=(NO_DURATION,), whole=True)
    return AnimationIndex(durations=tuple(durations), whole=ended and len(durations) >= announced, skipped=skipped)


def _gif(data: bytes) -> AnimationIndex:
    """Walk the blocks of a GIF: a colour table, extensions and pictures, each a chain of short pieces."""
    durations: list[float] = []
    delay = 0.0
    place = 13 + _colour_table(data[10:11])
    whole = True
    while whole:
        mark = data[place : place + 1]
        if mark == b"\x21":
            if data[place + 1 : place + 2] == b"\xf9":
                delay = int.from_bytes(data[place + 4 : place + 6], "little") / 100
            place = _chain_end(data, place + 2)
        elif mark == b"\x2c":
            durations.append(delay if delay >= SHORTEST_GIF else NO_DURATION)
            delay = 0.0
            place = _chain_end(data, place + 11 + _colour_table(data[place + 9 : place + 10]))
        else:
            # A single picture that is all there needs no trailer; frames could be missing without one.
            whole = mark == b"\x3b" or (place <= len(data) and len(durations) == 1)
            break
    return AnimationIndex(durations=tuple(durations), whole=whole)


def _colour_table(flags: bytes) -> int:
    return 3 << ((flags[0] & 7) + 1) if flags and flags[0] & 0x80 else 0


def _chain_end(data: bytes, place: int) -> int:
    """Where a chain of pieces ends; beyond the data if it does not."""
    while place < len(data) and data[place]:
        place += data[place] + 1
    return place + 1


def _icon_end(data: bytes) -> int:
    """Where the last picture of an ICO ends."""
    rows = range(6, 6 + 16 * int.from_bytes(data[4:6], "little"), 16)
    ends = [sum(int.from_bytes(data[place : place + 4], "little") for place in (row + 8, row + 12)) for row in rows]
    return max(ends, default=0)


def _webp(data: bytes) -> AnimationIndex:
    durations: list[float] = []
    end = int.from_bytes(data[4:8], "little") + 8
    place = 12
    while place + 8 <= min(end, len(data)):
        if data[place : place + 4] == b"ANMF":
            durations.append(int.from_bytes(data[place + 20 : place + 23], "little") / 1000 or NO_DURATION)
        length = int.from_bytes(data[place + 4 : place + 8], "little")
        place += 8 + length + length % 2
    return AnimationIndex(durations=tuple(durations) or (NO_DURATION,), whole=len(data) >= end - end % 2)


def _avif(data: bytes) -> AnimationIndex:
    boxes, whole = top_boxes(data)
    durations: list[float] = []
    moov = next((body for kind, body in boxes if kind == b"moov"), None)
    if moov is not None and data[8:12] == b"avis":
        for kind, track in box_children(moov):
            handler = find_box(track, b"mdia", b"hdlr")
            if kind == b"trak" and handler is not None and handler[8:12] == b"pict":
                durations = _track_durations(track)
                break
    return AnimationIndex(durations=tuple(durations) or (NO_DURATION,), whole=whole)


def _track_durations(track: memoryview) -> list[float]:
    header, table = find_box(track, b"mdia", b"mdhd"), find_box(track, b"mdia", b"minf", b"stbl", b"stts")
    if header is None or table is None or len(header) < 24:
        return []
    place = 20 if header[0] == 1 else 12
    ticks = int.from_bytes(header[place : place + 4], "big") or 1
    durations: list[float] = []
    for row in range(8, min(len(table), 8 + 8 * int.from_bytes(table[4:8], "big")) - 7, 8):
        count, length = int.from_bytes(table[row : row + 4], "big"), int.from_bytes(table[row + 4 : row + 8], "big")
        if count > 10_000_000:  # a count that no file of this size could hold
            return []
        durations += [length / ticks or NO_DURATION] * count
    return durations
