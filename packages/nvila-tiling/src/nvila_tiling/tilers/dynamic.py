"""Dynamic tiling as in NVILA-Lite: one grid of tiles that fits the aspect ratio, and a thumbnail."""

from dataclasses import dataclass, replace

from ..colours import HALVES, Colours, colours_of
from ..decode import AnyImage
from ..errors import TilingError
from ..grid import TilePlan
from ..pixels import Resampler, check_resampler, cut_tiles, open_source
from ..tiler import TiledImage
from .choice import closest_grid


@dataclass(frozen=True, kw_only=True)
class DynamicTiles:
    """Cut an image into the grid of tiles that fits it best, and show it whole in a last tile.

    Args:
        tile: side of a tile in pixels.
        min_tiles: fewest tiles of the grid.
        max_tiles: most tiles of the grid; the thumbnail is not counted.
        thumbnail: add the whole image as a last tile, unless the grid is a single tile.
        resampler: ``torch`` (fast) or ``pillow`` (the reference's bits).
        exif: turn images upright as their EXIF orientation says; the reference does not.
        mean: of red, green and blue, from 0 to 1, that the tower was trained with (SigLIP's by default).
        std: their deviations.

    Raises: TilingError for settings that leave no grid; when called, ImageError for an image that cannot be read.
    Source: NVILA-Lite's configuration; upstream's ``dynamic_preprocess``.
    """

    tile: int = 448
    min_tiles: int = 1
    max_tiles: int = 12
    thumbnail: bool = True
    resampler: Resampler = "torch"
    exif: bool = True
    mean: tuple[float, float, float] = HALVES.mean
    std: tuple[float, float, float] = HALVES.std

    def __post_init__(self) -> None:
        if self.tile < 1:
            raise TilingError(f"a tile of {self.tile} pixels shows nothing: use at least 1")
        if not 1 <= self.min_tiles <= self.max_tiles:
            raise TilingError(
                f"min_tiles {self.min_tiles} and max_tiles {self.max_tiles} leave no grid: "
                "use 1 <= min_tiles <= max_tiles"
            )
        check_resampler(self.resampler)
        Colours(self.mean, self.std)

    def plan(self, width: int, height: int) -> TilePlan:
        """The grid of an image of this size; a thumbnail only if there is more than one tile."""
        grid = closest_grid(width, height, tile=self.tile, fewest=self.min_tiles, most=self.max_tiles)
        return TilePlan(
            size=(width, height), tile=self.tile, grids=(grid,), thumbnail=self.thumbnail and grid.count > 1
        )

    def for_processor(self, processor: object) -> "DynamicTiles":
        """The same tiler for the tower that an image processor belongs to, with its mean and deviation.

        Args:
            processor: of transformers, open-clip's preprocessing, or timm's data config; see ``colours_of``.

        Raises: TilingError if it names none.
        """
        colours = colours_of(processor)
        return replace(self, mean=colours.mean, std=colours.std)

    def __call__(self, image: AnyImage) -> TiledImage:
        """Make the tiles: ``[n, 3, tile, tile]``, row by row, the thumbnail last."""
        source = open_source(image, resampler=self.resampler, exif=self.exif)
        plan = self.plan(*source.size)
        colours = Colours(self.mean, self.std)
        return TiledImage(
            tiles=cut_tiles(source, plan.levels, plan.tile, colours), plan=plan, mean=self.mean, std=self.std
        )
