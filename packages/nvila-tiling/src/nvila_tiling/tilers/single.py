"""One tile an image: what a model without tiling sees, and each frame of a video."""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ..colours import HALVES, Colours, colours_of
from ..decode import AnyImage, to_pillow
from ..errors import TilingError
from ..grid import Grid, TilePlan
from ..pixels import Resampler, check_resampler, cut_tiles, normalise, open_source, planes, resize_padded
from ..tiler import TiledImage


@dataclass(frozen=True, kw_only=True)
class SingleTile:
    """The whole image as one tile.

    Args:
        tile: side of the tile in pixels.
        mode: ``resize`` stretches the image to the square; ``pad`` centres it on a square of the mean colour first.
        resampler: ``torch`` (fast) or ``pillow`` (the reference's bits).
        exif: turn images upright as their EXIF orientation says; the reference does not.
        repeat: how many scales the tile's features stand for (Dynamic-S2: the number of scales).
        mean: of red, green and blue, from 0 to 1, that the tower was trained with (SigLIP's by default).
        std: their deviations.

    Raises: TilingError for settings that cannot be; when called, ImageError for an image that cannot be read.
    Source: NVILA, Table 1 (one tile); upstream's ``image_aspect_ratio`` "resize" and "pad".
    """

    tile: int = 448
    mode: Literal["resize", "pad"] = "resize"
    resampler: Resampler = "torch"
    exif: bool = True
    repeat: int = 1
    mean: tuple[float, float, float] = HALVES.mean
    std: tuple[float, float, float] = HALVES.std

    def __post_init__(self) -> None:
        if self.tile < 1 or self.repeat < 1:
            raise TilingError(f"tile {self.tile} and repeat {self.repeat} must both be at least 1")
        if self.mode not in ("resize", "pad"):
            raise TilingError(f"{self.mode!r} is not a mode of one tile: use 'resize' or 'pad'")
        check_resampler(self.resampler)
        Colours(self.mean, self.std)

    def plan(self, width: int, height: int) -> TilePlan:
        """One tile, whatever the size."""
        return TilePlan(
            size=(width, height), tile=self.tile, grids=(Grid(1, 1),), repeat=self.repeat, pad=self.mode == "pad"
        )

    def for_processor(self, processor: object) -> "SingleTile":
        """The same tiler for the tower that an image processor belongs to, with its mean and deviation.

        Args:
            processor: of transformers, open-clip's preprocessing, or timm's data config; see ``colours_of``.

        Raises: TilingError if it names none.
        """
        colours = colours_of(processor)
        return replace(self, mean=colours.mean, std=colours.std)

    def __call__(self, image: AnyImage) -> TiledImage:
        """Make the tile: ``[1, 3, tile, tile]``."""
        if self.mode == "pad":
            return self._pad(image)
        source = open_source(image, resampler=self.resampler, exif=self.exif)
        plan = self.plan(*source.size)
        colours = Colours(self.mean, self.std)
        return TiledImage(
            tiles=cut_tiles(source, plan.levels, plan.tile, colours), plan=plan, mean=self.mean, std=self.std
        )

    def _pad(self, image: AnyImage) -> TiledImage:
        """The tile of an image on its grey square."""
        rgb = to_pillow(image, exif=self.exif)
        plan = self.plan(*rgb.size)
        colours = Colours(self.mean, self.std)
        pixels = resize_padded(rgb, self.tile, self.resampler, colours)
        tiles = np.empty((1, self.tile, self.tile, 3), dtype=np.float32)
        normalise(pixels[:, :, :3], out=tiles[0], colours=colours)
        return TiledImage(tiles=planes(tiles), plan=plan, mean=self.mean, std=self.std)
