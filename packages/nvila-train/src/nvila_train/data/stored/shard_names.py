"""The shards that one path names."""

import re
from pathlib import Path
from typing import Final

from nvila_train.data.source import SourceError

_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")

MOST: Final = 100_000
"""Shards of a source at most."""

ENDINGS: Final = (".tar", ".tar.gz", ".tgz")


def shard_names(pattern: str) -> list[str]:
    """The shards that a path names: ``{000..011}`` counts, a folder gives its tar files in order.

    Raises: SourceError for a range that counts down, or counts to more than ``MOST`` shards.
    """
    if Path(pattern).is_dir():
        return [str(path) for path in sorted(Path(pattern).iterdir()) if path.name.lower().endswith(ENDINGS)]
    names = [pattern]
    while match := _BRACES.search(names[0]):
        first, last = int(match[1]), int(match[2])
        if last < first:
            raise SourceError(f"{pattern}: {match[0]} counts down: write {{{match[2]}..{match[1]}}}")
        if len(names) * (last - first + 1) > MOST:
            raise SourceError(f"{pattern} names more than {MOST} shards: put them into several sources")
        width = len(match[1])
        numbers = [f"{number:0{width}}" for number in range(first, last + 1)]
        names = [_BRACES.sub(number, name, count=1) for name in names for number in numbers]
    return names
