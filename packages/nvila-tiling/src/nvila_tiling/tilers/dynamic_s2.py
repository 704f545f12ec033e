"""Dynamic-S2: an image at several scales, the largest of which follows its aspect ratio.

A vision tower sees one square of 448 pixels. A page of small print, squeezed into it, is lost; but cut into squares
only, the page as a whole is lost. S2 ("scaling on scales") shows the tower both: the image as 1 x 1 tile, again as
2 x 2, again as 3 x 3, and concatenates what it saw at each place. Its squares bend every image that is not square, a
receipt to twice its width and more. Dynamic-S2 keeps the small scales square, where only the gist counts, and gives
the largest scale the grid whose aspect ratio comes closest to the image's, with at least as many tiles as the square
grid would have had and at most ``max_tiles``: detail is lost to neither shape nor size. All maps are then brought to
the size of the largest (``merge_scales``), so that the language model meets one map per image, with the channels of
three scales, and not one more token for the small ones.

Why not only the largest scale and a thumbnail, as DynamicTiles does? The thumbnail costs tokens of its own, and the
tower never sees a whole object that a tile's edge cuts in two.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

from ..colours import HALVES, Colours, colours_of
from ..decode import AnyImage
from ..errors import TilingError
from ..grid import Grid, TilePlan
from ..pixels import Resampler, check_resampler, cut_tiles, open_source
from ..tiler import TiledImage
from .choice import closest_grid
from .single import SingleTile


@dataclass(frozen=True, kw_only=True)
class DynamicS2:
    """Cut an image into tiles at every scale: square grids, and for the largest scale the grid that fits it best.

    Args:
        scales: sides in pixels of a square image at each scale, growing; the first is the side of a tile, the others
            are multiples of it.
        max_tiles: most tiles of the largest scale; the fewest are ``(largest / smallest) ** 2``.
        resampler: ``torch`` (fast) or ``pillow`` (the reference's bits).
        exif: turn images upright as their EXIF orientation says; the reference does not.
        output_scale: index of the scale whose size the merged map takes; -1 is the largest.
        mean: of red, green and blue, from 0 to 1, that the tower was trained with (SigLIP's by default).
        std: their deviations.

    Raises: TilingError for settings that leave no plan; when called, ImageError for an image that cannot be read.
    Source: NVILA, section 2.1.1 and Table 1; upstream's ``dynamic_s2_preprocess``.
    """

    scales: tuple[int, ...] = (448, 896, 1344)
    max_tiles: int = 12
    resampler: Resampler = "torch"
    exif: bool = True
    output_scale: int = -1
    mean: tuple[float, float, float] = HALVES.mean
    std: tuple[float, float, float] = HALVES.std

    def __post_init__(self) -> None:
        if len(self.scales) < 2 or self.scales[0] < 1 or any(a >= b for a, b in pairwise(self.scales)):
            raise TilingError(f"scales {self.scales} must be two or more that grow; for one scale use DynamicTiles")
        if any(scale % self.tile for scale in self.scales):
            raise TilingError(f"scales {self.scales} must all be multiples of the first, the side of a tile")
        if self.max_tiles < self.min_tiles:
            raise TilingError(
                f"max_tiles {self.max_tiles} is below {self.min_tiles}, the tiles of a square image at scale "
                f"{self.scales[-1]}: raise max_tiles or lower the scale"
            )
        if not -len(self.scales) <= self.output_scale < len(self.scales):
            raise TilingError(
                f"output_scale {self.output_scale} names none of {len(self.scales)} scales: use -1 for the largest"
            )
        check_resampler(self.resampler)
        Colours(self.mean, self.std)

    @property
    def tile(self) -> int:
        """Side of a tile: the smallest scale."""
        return self.scales[0]

    @property
    def min_tiles(self) -> int:
        """Fewest tiles of the largest scale: as many as a square image of that scale holds."""
        return (self.scales[-1] // self.tile) ** 2

    def plan(self, width: int, height: int) -> TilePlan:
        """Square grids for all scales but the largest, whose grid follows the aspect ratio."""
        squares = [Grid(scale // self.tile, scale // self.tile) for scale in self.scales[:-1]]
        largest = closest_grid(width, height, tile=self.tile, fewest=self.min_tiles, most=self.max_tiles)
        return TilePlan(size=(width, height), tile=self.tile, grids=(*squares, largest), output_scale=self.output_scale)

    def single(self) -> SingleTile:
        """The tiler of an image that this model does not tile: one tile whose features stand for every scale."""
        return SingleTile(
            tile=self.tile,
            resampler=self.resampler,
            exif=self.exif,
            repeat=len(self.scales),
            mean=self.mean,
            std=self.std,
        )

    def for_processor(self, processor: object) -> "DynamicS2":
        """The same tiler for the tower that an image processor belongs to, with its mean and deviation.

        Args:
            processor: of transformers, open-clip's preprocessing, or timm's data config; see ``colours_of``.

        Raises: TilingError if it names none.
        """
        colours = colours_of(processor)
        return replace(self, mean=colours.mean, std=colours.std)

    def __call__(self, image: AnyImage) -> TiledImage:
        """Make the tiles: ``[n, 3, tile, tile]``, scale by scale from the smallest, each row by row."""
        source = open_source(image, resampler=self.resampler, exif=self.exif)
        plan = self.plan(*source.size)
        colours = Colours(self.mean, self.std)
        return TiledImage(
            tiles=cut_tiles(source, plan.levels, plan.tile, colours), plan=plan, mean=self.mean, std=self.std
        )
