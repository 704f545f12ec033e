"""What pruning has to know of a form of data beyond its rows: which rows they are, and how some of them are written.

**Which rows they are.** Scores are numbers beside row numbers; on data whose rows have moved they would be taken for
those of other samples, and nothing would look wrong. So a digest of the data is kept with them, and computed again
before they are used. It covers every record: what is asked and answered, and every other field, in order. It does not
cover what the files of media hold. A record of JSON names them by their paths, and those are all that counts. Where
they lie inside the data, beside the text, their lengths and last bytes stand for them, since the last bytes of a JPEG
picture are its lower right corner and those of a PNG hold a checksum: a terabyte of pictures takes as long as its
text, and a picture that was exchanged for another is still found. The file's name, its time of change and how its rows
are cut into files and groups do not count, so data may be moved, copied and packed anew within its form.

    lines    JSON and JSONL
    tables   Parquet, saved folders, repositories
    tars     WebDataset shards
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

TAIL: Final = 64
"""Last bytes of a picture or clip that stand for it, beside its length."""


class Storage(Protocol):
    """Rows in one form of data."""

    @property
    def endings(self) -> tuple[str, ...]:
        """Of the name of a file that holds some of them, the usual one first."""
        ...

    def digest(self) -> str:
        """SHA-256 of all rows in order, in hexadecimal, media by length and last bytes."""
        ...

    def write(self, rows: Sequence[int], out: Path) -> None:
        """Write some rows, as they are, in the order in which they are given."""
        ...
