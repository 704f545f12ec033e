"""What stands in a tar file, also in one that is damaged.

``tarfile`` ends at the first header that it cannot read, without a word, and so drops all that stands after it. Here a
header whose checksum is wrong is one damaged place: the next sound header is looked for, and what lies between belongs
to nobody. A member that is announced but not there in full, and a file that ends without its end mark, are damaged
places too. Files that were put behind each other (``cat a.tar b.tar``) are read to their end.

Source: POSIX.1-2001, pax; the GNU manual for long names.
"""

import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

BLOCK: Final = tarfile.BLOCKSIZE

LONG_NAMES: Final = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
EXTENDED: Final = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)

MOST_EXTENDED: Final = 2**20
"""Bytes of a name or of further fields at most."""

Read = Callable[[int, int], bytes]
"""Bytes from a place on, fewer at the end of the file. Places never go back."""


@dataclass(frozen=True, kw_only=True)
class Member:
    """One file in a tar, or a damaged place.

    Attributes:
        name: as it is written; of a damaged header what can still be read, or nothing.
        start: where its first header begins.
        data: where its content begins.
        size: bytes of its content.
        damage: what is wrong, half a sentence; empty for a sound file.
    """

    name: str
    start: int
    data: int = 0
    size: int = 0
    damage: str = ""

    @property
    def end(self) -> int:
        """Where the next member begins."""
        return self.data + padded(self.size)


def members(read: Read) -> Iterator[Member]:
    """The regular files of a tar in order, and its damaged places.

    Raises: tarfile.ReadError if its first header is not one.
    """
    place = start = 0
    name, size = "", None
    ended = False
    while True:
        block = read(place, BLOCK)
        if len(block) < BLOCK:
            if not ended:
                yield Member(
                    name="", start=place, data=place, damage="ends without an end mark, so it may be cut short"
                )
            return
        if not block.strip(b"\0"):
            ended, place, start = True, place + BLOCK, place + BLOCK
            continue
        ended = False
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            if place == 0:
                raise tarfile.ReadError(str(error)) from None
            end = next_header(read, place + BLOCK)
            damage = f"has a damaged header at byte {place}"
            yield Member(name=name or readable(block), start=start, data=place, size=end - place, damage=damage)
            place = start = end
            name, size = "", None
            continue
        data = place + BLOCK
        if header.type in LONG_NAMES or header.type in EXTENDED:
            content = read(data, min(header.size, MOST_EXTENDED))
            if header.type == tarfile.GNUTYPE_LONGNAME:
                name = content.rstrip(b"\0").decode("utf-8", "surrogateescape")
            elif header.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
                fields = dict(extended(content))
                name, size = fields.get("path", name), int(fields["size"]) if fields.get("size", "").isdigit() else size
            place = data + padded(header.size)
            continue
        whole = size if size is not None else header.size if header.isreg() else 0
        if header.isreg():
            missing = whole and not read(data + whole - 1, 1)
            damage = f"is cut short: {whole} bytes are announced at byte {place}" if missing else ""
            yield Member(name=name or header.name, start=start, data=data, size=whole, damage=damage)
            if missing:
                return
        place = start = data + padded(whole)
        name, size = "", None


def next_header(read: Read, place: int) -> int:
    """Where the next sound header or empty block begins, or the file ends."""
    while len(block := read(place, BLOCK)) == BLOCK:
        if not block.strip(b"\0") or sound(block):
            return place
        place += BLOCK
    return place + len(block)


def sound(block: bytes) -> bool:
    """Whether a block is a header whose checksum is right."""
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def readable(block: bytes) -> str:
    """The name in a damaged header, if there is one."""
    name = block[:100].rstrip(b"\0")
    return name.decode() if name and name.isascii() and name.decode().isprintable() else ""


def extended(content: bytes) -> Iterator[tuple[str, str]]:
    """The fields of a pax header: ``length key=value`` and the end of a line each."""
    while content:
        length, _, _ = content.partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(content):
            return
        key, _, value = content[len(length) + 1 : int(length) - 1].partition(b"=")
        yield key.decode("utf-8", "surrogateescape"), value.decode("utf-8", "surrogateescape")
        content = content[int(length) :]


def padded(size: int) -> int:
    """Bytes that a content takes."""
    return -(-size // BLOCK) * BLOCK
