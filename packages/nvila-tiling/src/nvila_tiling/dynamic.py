"""Dynamic tiling as in NVILA-Lite: one grid of tiles that fits the aspect ratio, and a thumbnail."""

from dataclasses import dataclass

from .choice import closest_grid
from .errors import TilingError
from .grid import TilePlan
from .pixels import AnyImage, Resampler, cut_tiles, to_rgb
from .tiler import TiledImage


@dataclass(frozen=True, kw_only=True)
class DynamicTiles:
    """Cut an image into ``min_tiles`` to ``max_tiles`` tiles of the closest aspect ratio, and a thumbnail."""

    tile: int = 448
    min_tiles: int = 1
    max_tiles: int = 12
    thumbnail: bool = True
    resampler: Resampler = "torch"
    exif: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.min_tiles <= self.max_tiles:
            raise TilingError(
                f"min_tiles {self.min_tiles} and max_tiles {self.max_tiles} leave no grid: "
                f"use 1 <= min_tiles <= max_tiles"
            )

    def plan(self, width: int, height: int) -> TilePlan:
        """The grid of an image of this size; a thumbnail only if there is more than one tile."""
        grid = closest_grid(width, height, tile=self.tile, fewest=self.min_tiles, most=self.max_tiles)
        return TilePlan(
            size=(width, height), tile=self.tile, grids=(grid,), thumbnail=self.thumbnail and grid.count > 1
        )

    def __call__(self, image: AnyImage) -> TiledImage:
        """Tile an image."""
        rgb = to_rgb(image, exif=self.exif)
        plan = self.plan(*rgb.size)
        return TiledImage(tiles=cut_tiles(rgb, plan.levels, plan.tile, self.resampler), plan=plan)
