"""Dynamic-S2: an image at several scales, the largest of which follows its aspect ratio."""

from dataclasses import dataclass

from .choice import closest_grid
from .errors import TilingError
from .grid import Grid, TilePlan
from .pixels import AnyImage, Resampler, cut_tiles, to_rgb
from .single import SingleTile
from .tiler import TiledImage


@dataclass(frozen=True, kw_only=True)
class DynamicS2:
    """Cut an image into tiles at every scale."""

    scales: tuple[int, ...] = (448, 896, 1344)
    max_tiles: int = 12
    resampler: Resampler = "torch"
    exif: bool = True
    output_scale: int = -1

    def __post_init__(self) -> None:
        if self.max_tiles < self.min_tiles:
            raise TilingError(
                f"max_tiles {self.max_tiles} is below {self.min_tiles}, the tiles of a square image at scale "
                f"{self.scales[-1]}: raise max_tiles or lower the scale"
            )

    @property
    def tile(self) -> int:
        """Side of a tile: the smallest scale."""
        return self.scales[0]

    @property
    def min_tiles(self) -> int:
        """Fewest tiles of the largest scale: as many as a square image of that scale holds."""
        return (self.scales[-1] // self.scales[0]) ** 2

    def plan(self, width: int, height: int) -> TilePlan:
        """Square grids for all scales but the largest, whose grid follows the aspect ratio."""
        sides = [scale // self.tile for scale in self.scales[:-1]]
        largest = closest_grid(width, height, tile=self.tile, fewest=self.min_tiles, most=self.max_tiles)
        return TilePlan(
            size=(width, height),
            tile=self.tile,
            grids=(*(Grid(side, side) for side in sides), largest),
            output_scale=self.output_scale,
        )

    def single(self) -> SingleTile:
        """The tiler of an image that this model does not tile: one tile whose features stand for every scale."""
        return SingleTile(tile=self.tile, resampler=self.resampler, exif=self.exif, repeat=len(self.scales))

    def __call__(self, image: AnyImage) -> TiledImage:
        """Tile an image."""
        rgb = to_rgb(image, exif=self.exif)
        plan = self.plan(*rgb.size)
        return TiledImage(tiles=cut_tiles(rgb, plan.levels, plan.tile, self.resampler), plan=plan)
