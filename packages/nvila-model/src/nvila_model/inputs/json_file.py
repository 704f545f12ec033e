"""JSON files, which come from anywhere (checkpoints, tokenizers, adapters, data sets): every fault is one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["JSONFileError", "parse_json"]


class JSONFileError(ValueError):
    """A file that holds no JSON that can be read. It names the file and the fault; whoever reads adds the remedy."""


def parse_json(path: Path) -> Any:
    """The content of a JSON file in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Raises: FileNotFoundError if there is none; JSONFileError for what is no regular file, cannot be read, is not JSON,
        is nested beyond Python's depth, or has a number of thousands of digits.
    """
    try:
        if path.exists() and not path.is_file():
            raise JSONFileError(f"{path} is not a file")
        return json.loads(path.read_bytes())
    except (FileNotFoundError, JSONFileError):
        raise
    except OSError as error:
        raise JSONFileError(f"{path} cannot be read ({error.strerror})") from None
    except RecursionError:
        raise JSONFileError(f"{path} is not JSON (nested too deeply)") from None
    except ValueError as error:
        raise JSONFileError(f"{path} is not JSON ({error})") from None
