"""From 8-bit RGB to another size and on to normalised tiles.

Two resamplers, both bicubic with antialiasing and without keeping the aspect ratio. ``pillow`` gives the reference's
bits, whatever the version of Pillow. ``torch`` makes the same two passes, over rows and then over columns, with 16-bit
weights and vector instructions: several times faster, at most 2 levels off and equal in more than 99 % of the values.
"""

from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from .colours import HALVES, Colours
from .decode import AnyImage, Pixels, to_array, to_pillow
from .errors import TilingError
from .grid import Grid

Resampler: TypeAlias = Literal["torch", "pillow"]

BAND_BYTES = 2**24
"""How much of a padded image ``resize_padded`` holds at a time."""


class Source(Protocol):
    """An image that can be resized again and again, always from the original."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        ...

    def resize(self, width: int, height: int) -> Pixels:
        """uint8 ``[height, width, 3|4]``, the first three channels RGB."""
        ...


@dataclass(frozen=True)
class PillowSource:
    """Resizes with Pillow; ``image`` is of mode RGB."""

    image: Image.Image

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.image.size

    def resize(self, width: int, height: int) -> Pixels:
        """uint8 ``[height, width, 3]``."""
        # Two calls fix the order of the two passes, rows first, as in Pillow up to 12.1 and so in the reference; later
        # versions shrink the columns of some tall images first, which moves values by up to 30 levels.
        narrowed = self.image.resize((width, self.image.height), Image.Resampling.BICUBIC)
        if width % 4:
            return np.asarray(narrowed.resize((width, height), Image.Resampling.BICUBIC))
        # The pass over columns treats every byte alike. Pillow keeps RGB in four bytes, one of them idle; four pixels
        # of three bytes read as three of four bands save it a quarter of the steps, and the bits are the same.
        wide = width * 3 // 4
        packed = Image.frombuffer("RGBX", (wide, narrowed.height), narrowed.tobytes(), "raw", "RGBX", 0, 1)
        return np.asarray(packed.resize((wide, height), Image.Resampling.BICUBIC)).reshape(height, width, 3)


@dataclass(frozen=True)
class TorchSource:
    """Resizes with torch; ``array`` is uint8 ``[H, W, 3|4]``, contiguous and writeable."""

    array: Pixels

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.array.shape[1], self.array.shape[0]

    def resize(self, width: int, height: int) -> Pixels:
        """uint8 ``[height, width, 3|4]``."""
        # The batch axis comes first: added after the permute, its stride hides that this is channels last, and torch
        # takes a path that is half as fast.
        planes = torch.as_tensor(self.array).unsqueeze(0).permute(0, 3, 1, 2)
        resized = F.interpolate(planes, size=(height, width), mode="bicubic", antialias=True)
        return rearrange(resized, "1 c h w -> h w c").numpy()


def open_source(image: AnyImage, *, resampler: Resampler, exif: bool) -> Source:
    """Any image, ready to be resized. Raises: ImageError if it cannot be read as RGB."""
    if resampler == "pillow":
        return PillowSource(to_pillow(image, exif=exif))
    return TorchSource(to_array(image, exif=exif))


def check_resampler(resampler: str) -> None:
    """Raises: TilingError if there is no such resampler."""
    if resampler not in ("torch", "pillow"):
        raise TilingError(f"{resampler!r} is not a resampler: use 'torch' (fast) or 'pillow' (the reference's bits)")


def cut_tiles(source: Source, grids: tuple[Grid, ...], tile: int, colours: Colours = HALVES) -> Tensor:
    """The tiles of all grids in order, the image resized to each grid from the original.

    Shapes: -> float32 ``[n, 3, tile, tile]``, normalised, channels last in memory.
    """
    tiles = np.empty((sum(grid.count for grid in grids), tile, tile, 3), dtype=np.float32)
    done = 0
    for grid in grids:
        resized = source.resize(grid.cols * tile, grid.rows * tile)
        cut = rearrange(resized, "(rows h) (cols w) c -> rows cols h w c", h=tile, w=tile)
        out = rearrange(tiles[done : done + grid.count], "(rows cols) h w c -> rows cols h w c", cols=grid.cols)
        for index in np.ndindex(grid.rows, grid.cols):
            normalise(cut[index][..., :3], out=out[index], colours=colours)
        done += grid.count
    return planes(tiles)


def normalise(values: NDArray[np.uint8], *, out: NDArray[np.float32], colours: Colours = HALVES) -> None:
    """``(value / 255 - mean) / std`` of uint8 into float32, both ``[h, w, 3]``.

    With both a half, ``value / 127.5 - 1`` rounds to the same bits for all 256 values, since halving and doubling are
    exact. With others, ``value / (255 * std) - mean / std``: within one rounding of what processors compute.
    """
    if colours == HALVES:
        np.divide(values, np.float32(127.5), out=out)
        np.subtract(out, np.float32(1), out=out)
        return
    mean, std = (np.asarray(value, dtype=np.float64) for value in (colours.mean, colours.std))
    np.divide(values, (255 * std).astype(np.float32), out=out)
    np.subtract(out, (mean / std).astype(np.float32), out=out)


def planes(tiles: NDArray[np.float32]) -> Tensor:
    """``n h w c -> n c h w`` of the same memory.

    Channels last is how a picture comes out of a decoder and what a convolution over patches reads fastest; to reorder
    17 tiles of 448 pixels in memory takes longer than to resize a 640 x 480 picture to them.
    """
    return rearrange(torch.as_tensor(tiles), "n h w c -> n c h w")


def resize_padded(image: Image.Image, tile: int, resampler: Resampler, colours: Colours = HALVES) -> Pixels:
    """Centre an RGB image on a square of the mean colour and resize that to one tile, without ever holding the square.

    Rows are resampled before columns, each on its own, so bands of padded rows can be narrowed one after the other and
    rows that are all padding stay grey: the same bits as from the whole square, which for a 20,000 x 1 picture would
    take 1.6 GB.

    Shapes: -> uint8 ``[tile, tile, 3|4]``.
    Source: upstream's ``expand2square``.
    """
    side = max(image.size)
    grey = (int(colours.mean[0] * 255), int(colours.mean[1] * 255), int(colours.mean[2] * 255))
    left, top = (side - image.width) // 2, (side - image.height) // 2
    narrow = Image.new("RGB", (tile, side), grey)
    band_rows = max(1, BAND_BYTES // (4 * side))
    for row in range(0, image.height, band_rows):
        rows = min(band_rows, image.height - row)
        band = Image.new("RGB", (side, rows), grey)
        band.paste(image.crop((0, row, image.width, row + rows)), (left, 0))
        resized = open_source(band, resampler=resampler, exif=False).resize(tile, rows)
        narrow.paste(Image.fromarray(np.ascontiguousarray(resized[:, :, :3])), (0, top + row))
    return open_source(narrow, resampler=resampler, exif=False).resize(tile, tile)
