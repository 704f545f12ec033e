"""Where the bytes of media come from, and images out of them.

Whatever is wrong with a source is said in one sentence, as a ``MediaError``: callers print it and stop.
"""

import io
import threading
import urllib.error
import urllib.request
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage

#: Seconds without an answer, and bytes, after which a download is given up.
FETCH_TIMEOUT = 20.0
FETCH_LIMIT = 256 * 2**20

# catch_warnings changes the process's filters: one thread at a time.
_OPENING = threading.Lock()


class MediaError(ValueError):
    """An image or video that cannot be used; the message is one sentence for the user."""


class MediaWarning(UserWarning):
    """Media that could be used only in part, and which part."""


def open_image(data: bytes, name: str) -> PILImage.Image:
    """Decode the bytes of an image file; ``name`` is what an error calls it."""
    if not data:
        raise MediaError(f"{name} is empty (0 bytes): pass an image file")
    try:
        # Pillow warns above 89 million pixels and refuses above twice that; the refusal is the limit here.
        with _OPENING, warnings.catch_warnings():
            warnings.simplefilter("ignore", PILImage.DecompressionBombWarning)
            image = PILImage.open(io.BytesIO(data))
    except PILImage.DecompressionBombError:
        limit = 2 * (PILImage.MAX_IMAGE_PIXELS or 0)
        raise MediaError(f"{name} unpacks to more than {limit} pixels: shrink it first") from None
    except PILImage.UnidentifiedImageError:
        start = bytes(data[:16])
        raise MediaError(f"{name} is not an image (it begins with {start!r}): convert it to PNG or JPEG") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise MediaError(f"{name} has a broken image header: {error}") from None
    return decoded(image, name)


def read_source(source: Any, *, kind: str) -> tuple[bytes, str]:
    """The bytes behind a path, an address or bytes, and a name for messages."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source), f"the {kind} given as bytes"
    if not isinstance(source, (str, Path)):
        article = "an" if kind == "image" else "a"
        raise MediaError(f"cannot take {article} {kind} from {type(source).__name__}: pass a path, an address or bytes")
    if is_address(source):
        return fetch(str(source)), str(source)
    path = Path(source)
    try:
        return path.read_bytes(), str(path)
    except FileNotFoundError:
        raise MediaError(f"no file at {path}") from None
    except IsADirectoryError:
        raise MediaError(f"{path} is a folder, not an {kind}: pass Video({str(path)!r}) for its frames") from None
    except OSError as error:
        raise MediaError(f"cannot read {path}: {error.strerror}") from None


def is_address(source: object) -> bool:
    """Whether a source is an http(s) address."""
    return isinstance(source, str) and source.lower().startswith(("http://", "https://"))


def fetch(address: str, *, timeout: float = FETCH_TIMEOUT, limit: int = FETCH_LIMIT) -> bytes:
    """The bytes at an http(s) address; redirects are followed to http(s) only. Raises MediaError."""
    if not is_address(address):
        raise MediaError(f"{address} is not an http or https address")
    request = urllib.request.Request(address, headers={"User-Agent": "nvila-model"})
    try:
        with _opener().open(request, timeout=timeout) as answer:
            data = answer.read(limit + 1)
    except urllib.error.HTTPError as error:
        error.close()
        raise MediaError(f"{address} answered {error.code} {error.reason}") from None
    except TimeoutError:
        raise MediaError(f"{address} did not answer within {timeout:g} s") from None
    except (OSError, ValueError) as error:
        raise MediaError(f"cannot fetch {address}: {getattr(error, 'reason', error)}") from None
    if len(data) > limit:
        raise MediaError(f"{address} is larger than {limit} bytes: download it and pass the file")
    return data


def _opener() -> urllib.request.OpenerDirector:
    # build_opener would add file and ftp, to which a redirect could lead.
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPRedirectHandler,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.UnknownHandler,
    ):
        opener.add_handler(handler())
    return opener


def decoded(image: PILImage.Image, name: str) -> PILImage.Image:
    """Read the pixels now, so that a cut file fails here and not in the middle of tiling."""
    try:
        image.load()
    except (OSError, SyntaxError, ValueError, EOFError, IndexError) as error:
        raise MediaError(f"{name} is cut short or corrupt: {error}") from None
    return image


def image_from_array(array: np.ndarray) -> PILImage.Image:
    """A uint8 array ``[h, w, 3]``, ``[h, w, 4]`` or ``[h, w]`` as an image. Raises MediaError."""
    colour = array.ndim == 3 and array.shape[-1] in (3, 4)
    if array.dtype != np.uint8 or not (colour or array.ndim == 2) or 0 in array.shape:
        raise MediaError(
            f"an image array must be uint8 [h, w, 3], [h, w, 4] or [h, w], not {array.dtype} {list(array.shape)}"
        )
    return PILImage.fromarray(np.ascontiguousarray(array))
