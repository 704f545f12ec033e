"""Where the bytes of media come from: a regular file, an address, a data URI, or bytes.

Whatever is wrong with a source is said in one sentence, as a ``MediaError``: callers print it and stop.
"""

import base64
import binascii
import os
import stat
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote_to_bytes

from nvila_model.inputs.errors import MediaError, MediaWarning, as_media_error, reason, shown
from nvila_model.inputs.limits import current_limits
from nvila_model.inputs.web.address import address_name, is_http
from nvila_model.inputs.web.fetch import fetch

__all__ = ["MediaError", "MediaWarning", "fetch", "is_address", "open_file", "read_source", "source_name"]


def is_address(source: object) -> bool:
    """Whether a source is an http(s) address or a data URI: text that names no file."""
    return is_http(source) or _is_data(source)


def source_name(source: Any, *, kind: str) -> str:
    """What messages call a source: never a password, never more than a line."""
    if is_http(source):
        return address_name(source)
    if _is_data(source):
        return f"the {kind} in a data URI"
    return shown(source) if isinstance(source, (str, Path)) else f"the {kind} given as {_type_name(source)}"


def read_source(source: Any, *, kind: str, allow_private: bool = False) -> tuple[bytes, str]:
    """The bytes behind a path, an address, a data URI or bytes, and a name for messages.

    Args:
        source: as for ``Image`` and ``Video``.
        kind: "image" or "video"; the limit on bytes is that of the kind.
        allow_private: also addresses of this machine and of private networks.

    Raises: MediaError.
    """
    name = source_name(source, kind=kind)
    if is_http(source):
        return fetch(source, allow_private=allow_private), name
    if _is_data(source):
        return _decode_data(source, name, limit=byte_limit(kind)), name
    if isinstance(source, (bytes, bytearray, memoryview)):
        _refuse_size(memoryview(source).nbytes, name, kind)
        return bytes(source), name
    if not isinstance(source, (str, Path)):
        article = "an" if kind == "image" else "a"
        raise MediaError(
            f"cannot take {article} {kind} from {_type_name(source)}: pass a path, an address, bytes or pixels"
        )
    with closing(open_file(source, kind=kind)) as file, as_media_error(f"cannot read {name}"):
        return file.read(byte_limit(kind)), name  # the size was checked; a file that grows is cut there


def open_file(path: str | Path, *, kind: str) -> BinaryIO:
    """A regular file, opened, its size within the limit of its kind.

    Pipes, sockets and devices are refused before they are read: they may block or never end.

    Raises: MediaError.
    """
    name = shown(path)
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            article = "an" if kind == "image" else "a"
            raise MediaError(f"{name} is a folder, not {article} {kind}: pass Video({name!r}) for its frames")
        if not stat.S_ISREG(status.st_mode):
            raise MediaError(f"{name} is a pipe or a device, not a file: save it to a file first")
        # A pipe may have taken the file's place since; opening one must not wait for a writer.
        number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        file = os.fdopen(number, "rb")
    except MediaError:
        raise
    except FileNotFoundError:
        raise MediaError(f"no file at {name}") from None
    except (ValueError, NotADirectoryError):  # a NUL byte, a surrogate
        raise MediaError(f"no file at {name}") from None
    except OSError as error:
        too_long = error.errno is not None and os.strerror(error.errno) == "File name too long"
        raise MediaError(f"no file at {name}" if too_long else f"cannot read {name}: {reason(error)}") from None
    try:
        status = os.fstat(number)
        if not stat.S_ISREG(status.st_mode):
            raise MediaError(f"{name} is a pipe or a device, not a file: save it to a file first")
        _refuse_size(status.st_size, name, kind)
    except BaseException:
        file.close()
        raise
    return file


def is_folder(source: object) -> bool:
    """Whether a source is the path of a folder; False for whatever cannot be looked at."""
    try:
        return isinstance(source, (str, Path)) and not is_address(source) and os.path.isdir(source)
    except (OSError, ValueError):
        return False


def is_file(source: object) -> bool:
    """Whether a source is the path of a file; False for whatever cannot be looked at."""
    try:
        return isinstance(source, (str, Path)) and not is_address(source) and os.path.isfile(source)
    except (OSError, ValueError):
        return False


def byte_limit(kind: str) -> int:
    """Most bytes of an image or a video file."""
    limits = current_limits()
    return limits.video_bytes if kind == "video" else limits.image_bytes


def _refuse_size(size: int, name: str, kind: str) -> None:
    limit = byte_limit(kind)
    if size > limit:
        raise MediaError(f"{name} has {size} bytes, more than {limit} (Limits.{kind}_bytes): make it smaller")


def _is_data(source: object) -> bool:
    return isinstance(source, str) and source[:5].lower() == "data:"


def _decode_data(source: str, name: str, *, limit: int) -> bytes:
    """The bytes of ``data:[type][;base64],...``. Raises: MediaError that does not repeat them."""
    head, comma, body = source.partition(",")
    if not comma:
        raise MediaError(f"{name} has no comma: write data:image/png;base64,...")
    if len(body) > limit * 4 // 3 + 4:
        raise MediaError(f"{name} has {len(body)} letters, more than the {limit} bytes of Limits allow: use a file")
    data = unquote_to_bytes(body)
    if not head.lower().endswith(";base64"):
        return data
    data = b"".join(data.split()).replace(b"-", b"+").replace(b"_", b"/").rstrip(b"=")
    try:
        return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise MediaError(f"{name} is not base64: encode the bytes of the file again") from None


def _type_name(source: object) -> str:
    return "bytes" if isinstance(source, (bytes, bytearray, memoryview)) else type(source).__name__
