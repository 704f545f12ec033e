"""WebDataset shards as rows: tar files in which the members of a sample stand together and share their name.

    00017.json  00017.jpg            one picture
    00018.json  00018.0.png  00018.1.png

The ``json`` member is the record. Its ``image`` and ``video`` may name members (``"0.png"`` or ``"00018.0.png"``);
where it has none, the members that are pictures or clips are its media, in the order of the shard. Shards on this
machine are indexed, so any sample can be read alone; through an address they are read from front to back. A damaged
place is the fault of its sample; all others are read.
"""

import tarfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image as PILImage

from nvila_train.data.record import RecordError, media_of
from nvila_train.data.source import SourceError
from nvila_train.data.stored.json_files import LONGEST, parsed, too_large
from nvila_train.data.stored.offsets import offsets
from nvila_train.data.stored.tar_members import Member, Read, members
from nvila_train.data.stored.tar_samples import TarSample, samples

VIDEOS = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".gif")
"""Endings of members that are clips; those of Pillow's formats are pictures."""

DAMAGE = "damage"
"""Under this name a sample in memory has what is wrong with it."""

WINDOW = 2**31
"""Bytes of a streamed shard that are held at most, for one sample."""


class ShardRows:
    """Samples of tar files on this machine.

    Raises: SourceError for a shard that is not there or no tar file, RecordError for a sample that is damaged or has no
        record.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self.spans: list[np.ndarray] = []
        for path in self.paths:
            if not path.is_file():
                raise SourceError(
                    f"no shard at {path}: give a .tar file, a folder of them, or a range such as {{0..9}}"
                )
            try:
                self.spans.append(offsets(path, spans_with_damage))
            except (tarfile.TarError, OSError) as error:
                raise SourceError(f"{path} is no tar file: {error}") from None
        self.ends = np.cumsum([len(spans) for spans in self.spans])

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, row: int) -> dict[str, Any]:
        path, start, end, damaged = self.place(row)
        if damaged:
            if start == end:
                raise RecordError("shard", f"{path.name} ends at byte {end} without an end mark: it may be cut short")
            raise RecordError("shard", f"{path.name} is damaged or cut short between bytes {start} and {end}")
        data = self.stored(row)
        (sample,) = samples(each for each in members(reading(data)) if not each.damage)
        return from_members(contents(sample, reading(data)))

    def number(self, row: int) -> int:
        """The number of a row, from 1."""
        return row + 1

    def place(self, row: int) -> tuple[Path, int, int, bool]:
        """The shard of a sample, where it begins and ends there, and whether it is damaged."""
        shard = int(np.searchsorted(self.ends, row, side="right"))
        start, end, damaged = self.spans[shard][row - int(self.ends[shard])].tolist()
        return self.paths[shard], start, end, bool(damaged)

    def stored(self, row: int) -> bytes:
        """The members of a sample as they stand in the shard, headers included."""
        path, start, end, _ = self.place(row)
        with path.open("rb") as file:
            file.seek(start)
            return file.read(end - start)


def spans_with_damage(path: Path) -> np.ndarray:
    """Where each sample of a shard begins and ends, and 1 if it is damaged: int64 ``[samples, 3]``."""
    with path.open("rb") as file:
        spans = [span(sample) for sample in samples(members(read_at(file)))]
    return np.array(spans, dtype=np.int64).reshape(-1, 3)


def span(sample: TarSample) -> tuple[int, int, int]:
    """Where a sample begins and ends, and whether it is damaged."""
    return min(member.start for member in sample.members), sample.members[-1].end, int(bool(sample.damage))


def read_at(file: BinaryIO) -> Read:
    """Reads from an open file."""

    def read(place: int, count: int) -> bytes:
        file.seek(place)
        return file.read(count)

    return read


def reading(data: bytes) -> Read:
    """Reads from bytes in memory."""
    return lambda place, count: data[place : place + count]


def contents(sample: TarSample, read: Read) -> dict[str, Any]:
    """The contents of a sample's members by ending, with ``__key__``, and ``DAMAGE`` if there is any."""
    found: dict[str, Any] = {"__key__": sample.key}
    if sample.damage:
        found[DAMAGE] = sample.damage
    for member in sample.members:
        if not member.damage:
            found[ending_of(member, sample.key)] = read(member.data, member.size)
    return found


def ending_of(member: Member, key: str) -> str:
    """A member's name after its sample's, in lower case."""
    return member.name.removeprefix(f"{key}.").lower()


def from_members(sample: Mapping[str, Any]) -> dict[str, Any]:
    """A record with the bytes of its media, from what ``contents`` gave. Raises: RecordError."""
    if DAMAGE in sample:
        raise RecordError("shard", f"sample {sample['__key__'] or 'without a name'}: the shard {sample[DAMAGE]}")
    if "json" not in sample:
        raise RecordError("json", f"sample {sample.get('__key__')} has no .json member with its conversations")
    if len(sample["json"]) > LONGEST:
        raise RecordError("json", too_large(len(sample["json"])))
    try:
        record = parsed(sample["json"])
    except RecordError as error:
        raise RecordError("json", f"the member of sample {sample['__key__']} {error.problem}") from None
    if not isinstance(record, dict):
        raise RecordError("json", f"is {type(record).__name__}, not an object with conversations")
    files = {ending: data for ending, data in sample.items() if kind_of(ending)}
    if not any(name in record for name in ("image", "images", "video", "videos")):
        for ending, data in files.items():
            record.setdefault(kind_of(ending), []).append(data)
        return record
    stem = Path(str(sample["__key__"])).name
    named = files | {f"{stem}.{ending}": data for ending, data in files.items()}
    for name in ("image", "images", "video", "videos"):
        if record.get(name) is not None:
            record[name] = [
                named.get(source.lower(), named.get(source, source)) if isinstance(source, str) else source
                for source in media_of(record, name)
            ]
    return record


def kind_of(ending: str) -> str:
    """``image``, ``video``, or nothing for a member that is neither."""
    suffix = f".{ending.rpartition('.')[2]}"
    if suffix in VIDEOS:
        return "video"
    return "image" if suffix in PILImage.registered_extensions() else ""


def stream_shards(names: Sequence[str], start: int) -> Iterator[dict[str, Any]]:
    """Samples of shards from front to back, as ``contents`` gives them, from row ``start`` on; needs extra ``data``.

    Every process reads all of them: which samples are whose is told by their number, not by their shard.
    """
    return islice((sample for name in names for sample in stream_shard(name)), start, None)


def stream_shard(name: str) -> Iterator[dict[str, Any]]:
    """Samples of one shard from front to back. Raises: SourceError if it cannot be opened or is no tar file."""
    try:
        from webdataset.gopen import gopen
    except ImportError:
        raise SourceError("shards are streamed by webdataset: pip install 'nvila-train[data]'") from None
    try:
        with Window(gopen(name)) as window:
            for sample in samples(members(window.read)):
                yield contents(sample, window.read)
                window.forget(sample.members[-1].end)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise SourceError(f"{name} cannot be read as a tar file: {error}") from None


class Window:
    """Reads from a stream at growing places, and holds what was read until it is forgotten.

    Raises: tarfile.ReadError where more than ``WINDOW`` bytes would be held.
    """

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.start = 0
        self.held = bytearray()

    def __enter__(self) -> "Window":
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()

    def read(self, place: int, count: int) -> bytes:
        """Bytes at a place, fewer at the end of the stream."""
        if place + count - self.start > WINDOW:
            raise tarfile.ReadError(f"a sample takes more than {WINDOW / 2**30:.0f} GiB at byte {self.start}")
        while (missing := place + count - self.start - len(self.held)) > 0:
            piece = self.stream.read(max(missing, 2**16))
            if not piece:
                break
            self.held += piece
        return bytes(self.held[place - self.start : place - self.start + count])

    def forget(self, place: int) -> None:
        """Hold nothing that stands before a place."""
        kept = min(place - self.start, len(self.held))
        if kept > 0:
            del self.held[:kept]
            self.start += kept
