"""JSON files of checkpoints, tokenizers and adapters, which come from anywhere: every fault is one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class JSONFileError(ValueError):
    """A file that holds no JSON that can be read; the sentence names it."""


def parse_json(path: Path) -> Any:
    """The content of a JSON file; a byte order mark at its beginning is passed over.

    Raises: FileNotFoundError if there is none; JSONFileError for what is no regular file, cannot be read, is not UTF-8
        or not JSON, is nested beyond Python's depth, or has a number of thousands of digits.
    """
    if path.exists() and not path.is_file():
        raise JSONFileError(f"{path} is not a file: put the JSON file there")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise
    except OSError as error:
        raise JSONFileError(f"{path} cannot be read ({error.strerror}): check its permissions") from None
    except RecursionError:
        raise JSONFileError(f"{path} is not JSON (nested too deeply): fetch the file again") from None
    except ValueError as error:
        raise JSONFileError(f"{path} is not JSON ({error}): fetch the file again") from None
