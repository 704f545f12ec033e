"""Pictures out of the bytes of a file: measured before they are decoded, refused in one sentence."""

import io
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image as PILImage
from PIL import ImageFile

from nvila_model.inputs.errors import MediaError, MediaWarning, as_media_error
from nvila_model.inputs.files.animation_index import AnimationIndex, read_index
from nvila_model.inputs.files.kind import HEAD, kind_of
from nvila_model.inputs.limits import current_limits

# catch_warnings and Pillow's own limit belong to the whole process: one thread at a time.
_OPENING = threading.Lock()

#: Formats whose decoders neither warn nor look into other files: they need not wait for each other.
_PLAIN = {"JPEG", "MPO", "PNG", "WEBP", "AVIF", "BMP", "GIF", "PPM", "JPEG2000"}

#: Drawings that Pillow hands to another program, and the program.
_DRAWINGS = {"EPS": "Ghostscript", "WMF": "Windows"}


def open_image(data: bytes, name: str, *, hide_content: bool = False) -> PILImage.Image:
    """Decode the first picture of a file.

    Args:
        data: the bytes of the file.
        name: what messages call it.
        hide_content: keep the first bytes out of messages; they came from somewhere else.

    Warns: MediaWarning if there are further frames or pages.
    Raises: MediaError if it is no picture, over a limit, damaged or cut short.
    """
    image, index = open_lazily(data, name, hide_content=hide_content)
    check_size(*image.size, name)
    image = decoded(image, name)
    check_size(*image.size, name)  # icons are as large as what is in them
    if image.format == "MPO" and not _holds_previews(image, data):
        raise MediaError(f"{name} is cut short or corrupt: the pictures after its first are missing: save it again")
    if len(index.durations) > 1:
        warnings.warn(
            f"{name} is an animation of {len(index.durations)} frames: the first is used; Video takes them all",
            MediaWarning,
            stacklevel=4,
        )
    elif image.format == "TIFF" and (pages := _pages(image)) > 1:
        warnings.warn(
            f"{name} has {pages} pages: the first is used; save others on their own", MediaWarning, stacklevel=4
        )
    return image


def open_lazily(
    data: bytes, name: str, *, hide_content: bool = False, allow_truncated: bool = False
) -> tuple[PILImage.Image, AnimationIndex]:
    """A picture or animation whose pixels were not decoded yet, and its frames. Raises: MediaError."""
    if not data:
        raise MediaError(f"{name} is empty (0 bytes): pass an image file")
    kind = kind_of(data[:HEAD])
    if kind in ("video", "sound"):
        what = "a film, not an image: pass it as Video" if kind == "video" else "sound, not an image"
        raise MediaError(f"{name} is {what}")
    with as_media_error(f"{name} is cut short or corrupt"):
        index = read_index(data)
    if not (index.whole or allow_truncated):
        raise MediaError(f"{name} is cut short or corrupt: it ends before its last part: save it again")
    try:
        image = _open(data)
    except PILImage.UnidentifiedImageError:
        if kind != "unknown":
            raise MediaError(f"{name} is cut short or corrupt: its header cannot be read: save it again") from None
        start = "" if hide_content else f" (it begins with {bytes(data[:16])!r})"
        raise MediaError(f"{name} is not an image{start}: convert it to PNG or JPEG") from None
    except Exception:
        with as_media_error(f"{name} has a broken image header"):
            image = _open(_without_notes(data))
    if isinstance(image, ImageFile.StubImageFile):
        raise MediaError(f"{name} is {image.format}, for which there is no decoder: convert it to PNG")
    return image, index


def decoded(image: PILImage.Image, name: str) -> PILImage.Image:
    """Read the pixels now, so that a cut file fails here and not in the middle of tiling. Raises: MediaError."""
    source = getattr(image, "fp", None)
    data = source.getvalue() if image.format == "PNG" and isinstance(source, io.BytesIO) else None
    try:
        if image.format in _PLAIN or image.format is None:
            image.load()
        else:
            with quiet_pillow():
                image.load()
        return image
    except Exception as error:
        failure = error
    if image.format in _DRAWINGS:
        program = _DRAWINGS[image.format]
        raise MediaError(f"{name} is a drawing ({image.format}) that only {program} can read: convert it to PNG")
    with as_media_error(f"{name} is cut short or corrupt"):
        if data is None:
            raise failure
        # A text or colour profile that breaks Pillow's limits may come after sound pixels.
        image = _open(_without_notes(data))
        image.load()
    return image


def image_from_array(array: np.ndarray) -> PILImage.Image:
    """A uint8 array ``[h, w, 3]``, ``[h, w, 4]`` or ``[h, w]`` as an image. Raises: MediaError."""
    colour = array.ndim == 3 and array.shape[-1] in (3, 4)
    if array.dtype != np.uint8 or not (colour or array.ndim == 2) or 0 in array.shape:
        raise MediaError(
            f"an image array must be uint8 [h, w, 3], [h, w, 4] or [h, w], not {array.dtype} {list(array.shape)}"
        )
    check_size(array.shape[1], array.shape[0], "the image array")
    return PILImage.fromarray(np.ascontiguousarray(array))


def check_size(width: int, height: int, name: str, *, frame: bool = False) -> None:
    """Refuse a picture by its announced size. Raises: MediaError naming the limit."""
    limits = current_limits()
    pixels, limit = (limits.frame_pixels, "frame_pixels") if frame else (limits.pixels, "pixels")
    size = f"{name} is {width} x {height} pixels"
    if width < 1 or height < 1:
        raise MediaError(f"{size}: there is nothing to see")
    if width * height > pixels:
        raise MediaError(f"{name} unpacks to more than {pixels} pixels ({width} x {height}, Limits.{limit}): shrink it")
    if max(width, height) > limits.sides:
        raise MediaError(f"{size}, a side of more than {limits.sides} (Limits.sides): shrink it or cut it in parts")
    if max(width, height) > limits.aspect_ratio * min(width, height):
        raise MediaError(
            f"{size}, more than {limits.aspect_ratio:g} times as long as wide (Limits.aspect_ratio): cut it in parts"
        )


@contextmanager
def quiet_pillow(*, unlimited: bool = False) -> Iterator[None]:
    """Pillow without its warnings, and without its limit where ours is checked next."""
    with _OPENING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        limit = PILImage.MAX_IMAGE_PIXELS
        try:
            if unlimited:
                PILImage.MAX_IMAGE_PIXELS = None
            yield
        finally:
            PILImage.MAX_IMAGE_PIXELS = limit


def _open(data: bytes) -> PILImage.Image:
    with quiet_pillow(unlimited=True):
        return PILImage.open(io.BytesIO(data))


def _without_notes(data: bytes) -> bytes:
    """A PNG without its texts, times and colour profile; other files as they are."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    kept = [data[:8]]
    place = 8
    while place + 8 <= len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        if data[place + 4 : place + 8] not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf", b"tIME"):
            kept.append(data[place:end])
        place = end
    return b"".join(kept)


def _holds_previews(image: PILImage.Image, data: bytes) -> bool:
    """Whether the pictures that a JPEG lists after its first lie within the file.

    Some writers, Pillow among them, list sizes that are too large; then the file must end where a picture does.
    """
    try:
        entries = image.mpinfo[0xB002]  # pyright: ignore[reportAttributeAccessIssue] - of MpoImageFile
        start = data.index(b"MPF\0") + 4  # offsets count from there
        places = [(start + entry["DataOffset"], entry["Size"]) for entry in entries[1:]]
        begun = all(data[place : place + 2] == b"\xff\xd8" for place, _ in places)
        fit = all(place + size <= len(data) for place, size in places)
        return begun and (fit or data.rstrip(b"\0").endswith(b"\xff\xd9"))
    except Exception:
        return False


def _pages(image: PILImage.Image) -> int:
    try:
        with quiet_pillow():
            return int(getattr(image, "n_frames", 1))
    except Exception:  # a broken list of further pages: the first was decoded
        return 1
