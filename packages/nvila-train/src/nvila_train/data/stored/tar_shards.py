"""WebDataset shards as rows: tar files in which the members of a sample stand together and share their name.

    00017.json  00017.jpg            one picture
    00018.json  00018.0.png  00018.1.png

The ``json`` member is the record. Its ``image`` and ``video`` may name members (``"0.png"`` or ``"00018.0.png"``);
where it has none, the members that are pictures or clips are its media, in the order of the shard. Shards on this
machine are indexed, so any sample can be read alone; through an address they are read from front to back.
"""

import io
import json
import re
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage

from nvila_train.data.record import RecordError, media_of
from nvila_train.data.source import SourceError
from nvila_train.data.stored.offsets import offsets

VIDEOS = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".gif")
"""Endings of members that are clips; those of Pillow's formats are pictures."""

_BLOCK = 512
_NAME = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$")  # WebDataset's own rule
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


class ShardRows:
    """Samples of tar files on this machine.

    Raises: SourceError for a shard that is not there or no tar file, RecordError for a sample without a record.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        for path in self.paths:
            if not path.is_file():
                raise SourceError(
                    f"no shard at {path}: give a .tar file, a folder of them, or a range such as {{0..9}}"
                )
        try:
            self.spans = [offsets(path, sample_spans) for path in self.paths]
        except tarfile.TarError as error:
            raise SourceError(f"a shard beside {self.paths[0]} is no tar file or cut short: {error}") from None
        self.ends = np.cumsum([len(spans) for spans in self.spans])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, row: int) -> dict[str, Any]:
        sample: dict[str, Any] = {}
        with tarfile.open(fileobj=io.BytesIO(self.stored(row))) as tar:
            for member in tar:
                key, ending = named(member)
                if ending:
                    content = tar.extractfile(member)
                    assert content is not None
                    sample |= {"__key__": key, ending: content.read()}
        return from_members(sample)

    def stored(self, row: int) -> bytes:
        """The members of a sample as they stand in the shard, headers included."""
        shard = int(np.searchsorted(self.ends, row, side="right"))
        start, end = self.spans[shard][row - int(self.ends[shard])]
        with self.paths[shard].open("rb") as file:
            file.seek(int(start))
            return file.read(int(end - start))


def sample_spans(path: Path) -> np.ndarray:
    """Where each sample of a shard begins and ends, int64 ``[samples, 2]``."""
    spans: list[tuple[int, int]] = []
    last = ""
    with tarfile.open(path, mode="r:") as tar:
        while (member := tar.next()) is not None:
            key, ending = named(member)
            if not ending:
                continue
            end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
            if key == last:
                spans[-1] = (spans[-1][0], end)
            else:
                spans.append((member.offset, end))
            last = key
    return np.array(spans, dtype=np.int64).reshape(-1, 2)


def named(member: tarfile.TarInfo) -> tuple[str, str]:
    """The key of a member's sample and its ending; two empty texts for what belongs to none."""
    match = _NAME.match(member.name) if member.isfile() else None
    return (match[1], match[2].lower()) if match else ("", "")


def from_members(sample: Mapping[str, Any]) -> dict[str, Any]:
    """A record with the bytes of its media, from members by ending and ``__key__``. Raises: RecordError."""
    if "json" not in sample:
        raise RecordError("json", f"sample {sample.get('__key__')} has no .json member with its conversations")
    try:
        record = json.loads(sample["json"])
    except ValueError as error:
        raise RecordError("json", f"the member of sample {sample['__key__']} is not JSON: {error}") from None
    if not isinstance(record, dict):
        raise RecordError("json", f"is {type(record).__name__}, not an object with conversations")
    files = {ending: data for ending, data in sample.items() if kind_of(ending)}
    if not any(name in record for name in ("image", "images", "video", "videos")):
        for ending, data in files.items():
            record.setdefault(kind_of(ending), []).append(data)
        return record
    stem = Path(str(sample["__key__"])).name
    members = files | {f"{stem}.{ending}": data for ending, data in files.items()}
    for name in ("image", "images", "video", "videos"):
        if record.get(name) is not None:
            record[name] = [
                members.get(str(source).lower(), members.get(source, source)) for source in media_of(record, name)
            ]
    return record


def kind_of(ending: str) -> str:
    """``image``, ``video``, or nothing for a member that is neither."""
    suffix = f".{ending.rpartition('.')[2]}"
    if suffix in VIDEOS:
        return "video"
    return "image" if suffix in PILImage.registered_extensions() else ""


def shard_names(pattern: str) -> list[str]:
    """The shards that a path names: ``{000..011}`` counts, a folder gives its tar files in order."""
    if Path(pattern).is_dir():
        return [str(path) for path in sorted(Path(pattern).glob("*.tar"))]
    match = _BRACES.search(pattern)
    if match is None:
        return [pattern]
    width = len(match[1])
    numbers = range(int(match[1]), int(match[2]) + 1)
    return [
        name
        for number in numbers
        for name in shard_names(f"{pattern[: match.start()]}{number:0{width}}{pattern[match.end() :]}")
    ]


def stream_shards(names: Sequence[str], start: int) -> Iterator[dict[str, Any]]:
    """Samples of shards from front to back, by ending and ``__key__``, from row ``start`` on; needs the extra ``data``.

    Every process reads all of them: which samples are whose is told by their number, not by their shard.
    """
    try:
        from webdataset.pipeline import DataPipeline
        from webdataset.shardlists import SimpleShardList
        from webdataset.tariterators import tarfile_to_samples
    except ImportError:
        raise SourceError("shards are streamed by webdataset: pip install 'nvila-train[data]'") from None
    pipeline = DataPipeline(SimpleShardList(list(names)), tarfile_to_samples())
    for sample in islice(iter(pipeline), start, None):
        yield {key: value for key, value in sample.items() if key == "__key__" or not key.startswith("__")}
