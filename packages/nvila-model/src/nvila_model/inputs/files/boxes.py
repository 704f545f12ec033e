"""The boxes of ISO files (MP4, MOV, AVIF): a length, four letters, a body."""

from collections.abc import Iterator


def top_boxes(data: bytes | memoryview) -> tuple[list[tuple[bytes, memoryview]], bool]:
    """The boxes of a file, and whether each is all there."""
    found = list(_walk(memoryview(data)))
    return [(kind, body) for kind, body, _ in found], sum(length for _, _, length in found) <= len(data)


def box_children(body: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """The boxes in a body, cut where it ends."""
    for kind, inner, _ in _walk(body):
        yield kind, inner


def find_box(body: memoryview, *path: bytes) -> memoryview | None:
    """The first box along a path of kinds."""
    for kind in path:
        found = next((inner for name, inner in box_children(body) if name == kind), None)
        if found is None:
            return None
        body = found
    return body


def _walk(body: memoryview) -> Iterator[tuple[bytes, memoryview, int]]:
    """Kind, content and announced length of each box."""
    place = 0
    while place + 8 <= len(body):
        length, kind, head = int.from_bytes(body[place : place + 4], "big"), bytes(body[place + 4 : place + 8]), 8
        if length == 1 and place + 16 <= len(body):
            length, head = int.from_bytes(body[place + 8 : place + 16], "big"), 16
        elif length == 0:  # up to the end
            length = len(body) - place
        if length < head:
            return
        yield kind, body[place + head : place + length], length
        place += length
