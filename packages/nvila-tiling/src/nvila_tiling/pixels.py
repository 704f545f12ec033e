"""From any image to 8-bit RGB, to another size, to normalised tiles."""

from typing import Any, Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from .errors import ImageError
from .grid import Grid

AnyImage: TypeAlias = Image.Image | NDArray[np.uint8] | Tensor
Resampler: TypeAlias = Literal["torch", "pillow"]

GREY = 127


def to_rgb(image: Any, *, exif: bool) -> Image.Image:
    """Any image as a Pillow image of mode RGB."""
    if isinstance(image, Tensor):
        image = rearrange(image, "c h w -> h w c").numpy()
    if isinstance(image, np.ndarray):
        return Image.fromarray(image).convert("RGB")
    if not isinstance(image, Image.Image):
        raise ImageError(
            f"{type(image).__name__} is not an image: pass a PIL image, numpy HWC uint8 or torch CHW uint8"
        )
    if exif:
        image = ImageOps.exif_transpose(image)
    if image.mode == "I;16":
        image = Image.fromarray(
            ((np.asarray(image).astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
        )
    return image.convert("RGB")


def resize(image: Image.Image, width: int, height: int, resampler: Resampler) -> Tensor:
    """Bicubic with antialiasing: uint8 [height, width, 3]."""
    if resampler == "pillow":
        return torch.from_numpy(np.array(image.resize((width, height), Image.Resampling.BICUBIC)))
    planes = rearrange(torch.from_numpy(np.array(image)), "h w c -> 1 c h w")
    return rearrange(
        F.interpolate(planes, size=(height, width), mode="bicubic", antialias=True), "1 c h w -> h w c"
    )


def cut(pixels: Tensor, grid: Grid, out: Tensor) -> None:
    """Cut into tiles and normalise: uint8 [rows*t, cols*t, 3] -> float32 [rows*cols, 3, t, t]."""
    out.copy_(rearrange(pixels, "(rows h) (cols w) c -> (rows cols) c h w", rows=grid.rows, cols=grid.cols))
    out.div_(127.5).sub_(1)


def cut_tiles(image: Image.Image, grids: tuple[Grid, ...], tile: int, resampler: Resampler) -> Tensor:
    """The tiles of all grids in order: float32 [n, 3, tile, tile]."""
    tiles = torch.empty(sum(grid.count for grid in grids), 3, tile, tile)
    for grid, out in zip(grids, tiles.split([grid.count for grid in grids]), strict=True):
        cut(resize(image, grid.cols * tile, grid.rows * tile, resampler), grid, out)
    return tiles
