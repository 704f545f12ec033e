"""One tile an image: what a model without tiling sees, and each frame of a video."""

from dataclasses import dataclass
from typing import Literal

from PIL import Image

from .errors import TilingError
from .grid import Grid, TilePlan
from .pixels import GREY, AnyImage, Resampler, cut_tiles, to_rgb
from .tiler import TiledImage


@dataclass(frozen=True, kw_only=True)
class SingleTile:
    """The whole image as one tile."""

    tile: int = 448
    mode: Literal["resize", "pad"] = "resize"
    resampler: Resampler = "torch"
    exif: bool = True
    repeat: int = 1

    def __post_init__(self) -> None:
        if self.tile < 1 or self.repeat < 1:
            raise TilingError(f"tile {self.tile} and repeat {self.repeat} must both be at least 1")

    def plan(self, width: int, height: int) -> TilePlan:
        """One tile, whatever the size."""
        return TilePlan(
            size=(width, height),
            tile=self.tile,
            grids=(Grid(1, 1),),
            repeat=self.repeat,
            pad=self.mode == "pad",
        )

    def __call__(self, image: AnyImage) -> TiledImage:
        """Tile an image."""
        rgb = to_rgb(image, exif=self.exif)
        plan = self.plan(*rgb.size)
        if plan.pad and rgb.width != rgb.height:
            side = max(rgb.size)
            square = Image.new("RGB", (side, side), (GREY, GREY, GREY))
            square.paste(rgb, ((side - rgb.width) // 2, (side - rgb.height) // 2))
            rgb = square
        return TiledImage(tiles=cut_tiles(rgb, plan.levels, plan.tile, self.resampler), plan=plan)
