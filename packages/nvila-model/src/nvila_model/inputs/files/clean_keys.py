"""Which packets that are marked as key frames a decoder can really begin at.

H.264 and H.265 know recovery points: places from which the picture becomes right little by little, as rows of
blocks are refreshed (``intra-refresh``). Files mark them as key frames. Whoever begins there gets frames that
are partly of nothing, so only those whose recovery takes no time are counted here.
"""

from collections.abc import Iterator

_RECOVERY_POINT = 6


def is_clean_key(data: bytes, codec: str, extradata: bytes | None) -> bool:
    """Whether decoding can begin at a packet marked as a key frame.

    Args:
        data: the packet, units behind start codes or behind lengths (as ``extradata`` says).
        codec: FFmpeg's name; True for all but h264 and hevc.
        extradata: the codec's header; one that begins with 1 announces lengths.
    """
    if codec not in ("h264", "hevc"):
        return True
    for unit in _units(data, codec, extradata):
        kind = unit[0] & 31 if codec == "h264" else unit[0] >> 1 & 63
        if kind == 5 if codec == "h264" else 16 <= kind <= 21:
            return True
        message = kind == 6 if codec == "h264" else kind == 39
        if message and _recovers_later(unit[1 if codec == "h264" else 2 :]):
            return False
    return True


def _units(data: bytes, codec: str, extradata: bytes | None) -> Iterator[bytes]:
    """The units of a packet up to its first slice; those after it change nothing."""
    if extradata and extradata[0] == 1 and len(extradata) > 22:
        size = (extradata[4] if codec == "h264" else extradata[21]) % 4 + 1
        place = 0
        while place + size < len(data):
            length = int.from_bytes(data[place : place + size], "big")
            unit = data[place + size : place + size + min(length, 256)]
            if unit:
                yield unit
            place += size + length
        return
    place = data.find(b"\0\0\1")
    while 0 <= place < len(data) - 4:
        after = data.find(b"\0\0\1", place + 3)
        yield data[place + 3 : place + 259] if after < 0 else data[place + 3 : min(after, place + 259)]
        place = after


def _recovers_later(messages: bytes) -> bool:
    """Whether supplemental messages hold a recovery point that is some frames away.

    Each message is a type, a size (both in bytes of 255 and a rest) and its payload, which begins with the
    count as Exp-Golomb code: a first bit of 1 says 0.
    """
    messages = messages.replace(b"\0\0\3", b"\0\0")
    place = 0
    while place + 2 < len(messages):
        numbers: list[int] = []
        for _ in range(2):
            number = 0
            while place < len(messages) and messages[place] == 255:
                number, place = number + 255, place + 1
            if place >= len(messages):
                return False
            numbers.append(number + messages[place])
            place += 1
        if numbers[0] == _RECOVERY_POINT and place < len(messages):
            return not messages[place] & 0x80
        place += numbers[1]
    return False
