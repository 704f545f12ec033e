"""Any image as 8-bit RGB: Pillow images of any mode, numpy HWC and torch CHW arrays.

Alpha is dropped, as the reference does, not blended over a colour. Sixteen-bit grey is scaled to eight, where Pillow's
own ``convert`` would cut everything above 255 to white.
"""

import threading
import warnings
from typing import Any, TypeAlias

import numpy as np
import torch
from einops import rearrange, repeat
from numpy.typing import NDArray
from PIL import ExifTags, Image
from torch import Tensor

from .errors import ImageError
from .grid import check_size

AnyImage: TypeAlias = Image.Image | NDArray[np.uint8] | Tensor
Pixels: TypeAlias = NDArray[np.uint8]

ORIENTATIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation to the turn that undoes it; 1 and unknown values turn nothing."""

# catch_warnings changes the process's filters: one thread at a time.
_READING = threading.Lock()

BAND_ROWS = 64
"""Rows that ``to_array`` copies at a time: few enough that a photo's stay in the second-level cache, enough that the
calls do not count."""


def to_pillow(image: AnyImage, *, exif: bool) -> Image.Image:
    """Any image as a Pillow image of mode RGB; the caller's own image if it already is one.

    Args:
        image: Pillow of any mode but F, numpy ``[H, W]`` or ``[H, W, 1|3|4]``, torch ``[1|3|4, H, W]``, both uint8.
        exif: turn a Pillow image upright as its EXIF orientation says.

    Raises: ImageError if it is none of these, holds no pixels, or cannot be decoded.
    """
    if not isinstance(image, Image.Image):
        array = check_array(image)
        plane_or_colours = array[:, :, 0] if array.shape[2] == 1 else array[:, :, :3]
        return Image.fromarray(np.ascontiguousarray(plane_or_colours)).convert("RGB")
    check_size(*image.size)
    try:
        image.load()
    except Exception as error:  # decoders raise nearly every type there is
        raise ImageError(f"the image cannot be decoded: {error}; save it again or leave it out") from error
    if exif and (turn := ORIENTATIONS.get(orientation_of(image))) is not None:
        image = image.transpose(turn)
    return _convert(image)


def orientation_of(image: Image.Image) -> int:
    """The EXIF orientation of an image; 1, upright, where there is none or it cannot be read.

    Cameras, editors and messengers write EXIF that is cut, nested wrongly or no EXIF at all. The pixels are sound
    all the same.
    """
    with _READING, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            value = image.getexif().get(ExifTags.Base.Orientation, 1)
        except Exception:  # SyntaxError, struct.error, ValueError, TypeError, KeyError, RecursionError ...
            return 1
    return value if isinstance(value, int) else 1


def to_array(image: AnyImage, *, exif: bool) -> Pixels:
    """Any image as a uint8 array ``[H, W, 3]`` or ``[H, W, 4]`` (as given), whose first three channels are RGB.

    Takes and raises what ``to_pillow`` does. The array is contiguous and writeable, so that torch may share it.
    """
    if isinstance(image, Image.Image):
        return _copy_rows(to_pillow(image, exif=exif))
    array = check_array(image)
    if array.shape[2] == 1:
        array = repeat(array, "h w 1 -> h w c", c=3)
    return np.require(array, requirements=["C", "W"])


def check_array(image: NDArray[Any] | Tensor) -> Pixels:
    """A numpy or torch image as uint8 ``[H, W, 1|3|4]``. Raises: ImageError if it is not one."""
    if isinstance(image, Tensor):
        what = f"a {image.dtype} tensor of shape {list(image.shape)}"
        if image.dtype != torch.uint8 or image.ndim != 3:
            raise ImageError(f"{what} is not an image: pass torch.uint8 [3, H, W], or 1 or 4 channels")
        array: Pixels = rearrange(image.detach().cpu(), "c h w -> h w c").numpy()
    elif isinstance(image, np.ndarray):  # pyright: ignore[reportUnnecessaryIsInstance] - callers are not all typed
        what = f"a {image.dtype} array of shape {image.shape}"
        if image.dtype != np.uint8 or image.ndim not in (2, 3):
            raise ImageError(f"{what} is not an image: pass uint8 [H, W, 3], or 1 or 4 channels, or [H, W]")
        array = image if image.ndim == 3 else image[:, :, None]
    else:
        raise ImageError(f"a {type(image).__name__} is not an image: pass PIL, numpy HWC uint8 or torch CHW uint8")
    if array.shape[2] not in (1, 3, 4) or not array.size:
        order = "[C, H, W]" if isinstance(image, Tensor) else "[H, W, C]"
        raise ImageError(f"{what} is not an image: pass {order} with 1, 3 or 4 channels and at least one pixel")
    return array


def _convert(image: Image.Image) -> Image.Image:
    """A decoded Pillow image of any mode as RGB."""
    if image.mode == "RGB":
        return image
    if image.mode == "F":
        raise ImageError("an image of mode F has no known range: scale it to 0-255 and convert it to mode L")
    if image.mode.startswith("I"):
        return _from_16_bit(image).convert("RGB")
    if isinstance(image.info.get("transparency"), bytes):
        # Pillow warns when a palette with an alpha per colour becomes RGB at once; the way over RGBA is silent.
        image = image.convert("RGBA")
    if image.mode == "La":  # Pillow knows no direct way from premultiplied grey to RGB
        image = image.convert("LA")
    return image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    """16-bit grey as 8-bit grey, 65535 becoming 255, rounded. Pillow opens some 16-bit files as mode I."""
    values: NDArray[Any] = np.asarray(image)
    lowest, highest = int(values.min()), int(values.max())
    if lowest < 0 or highest > 65535:
        raise ImageError(
            f"an image of mode I with values {lowest} to {highest} is not 16-bit grey: scale it to 0-65535"
        )
    to_8_bit = ((np.arange(65536) * 255 + 32767) // 65535).astype(np.uint8)
    return Image.fromarray(to_8_bit[values])


def _copy_rows(image: Image.Image) -> Pixels:
    """The pixels of an RGB image as ``[H, W, 3]``.

    Band by band, the detour over ``bytes`` stays in the cache: half the time of ``np.array(image)`` for a photo.
    """
    pixels = np.empty((image.height, image.width, 3), dtype=np.uint8)
    for top in range(0, image.height, BAND_ROWS):
        rows = pixels[top : top + BAND_ROWS]
        band = image.crop((0, top, image.width, top + len(rows)))
        rows[:] = np.frombuffer(band.tobytes(), dtype=np.uint8).reshape(rows.shape)
    return pixels
