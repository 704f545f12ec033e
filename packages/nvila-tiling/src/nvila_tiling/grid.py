"""The plan of an image: which grid of tiles is laid over it at which scale."""

from dataclasses import dataclass
from typing import NamedTuple

from .errors import GridError, ImageError


@dataclass(frozen=True)
class Grid:
    """A grid of ``rows`` x ``cols`` tiles or blocks, numbered row by row. Raises: GridError if either is below 1."""

    rows: int
    cols: int

    def __post_init__(self) -> None:
        if self.rows < 1 or self.cols < 1:
            raise GridError(f"a grid of {self.rows} x {self.cols} holds nothing: give at least 1 row and 1 column")

    @property
    def count(self) -> int:
        """How many tiles the grid holds."""
        return self.rows * self.cols


def check_size(width: int, height: int) -> None:
    """Raises: ImageError if an image of this size holds no pixels."""
    if width < 1 or height < 1:
        raise ImageError(f"an image of {width} x {height} pixels shows nothing: give at least 1 x 1")


class Place(NamedTuple):
    """Where a tile lies: ``scale`` counts the plan's levels, smallest first; ``row`` and ``col`` its grid."""

    scale: int
    row: int
    col: int


@dataclass(frozen=True, kw_only=True)
class TilePlan:
    """How one image becomes tiles; made from its size alone, before any pixel is touched.

    Tiles are numbered scale by scale, each scale row by row, a thumbnail last.

    Attributes:
        size: (width, height) of the image, after its EXIF rotation.
        tile: side of a tile in pixels.
        grids: one grid per scale, smallest first. Dynamic-S2: (1, 1), (2, 2), (rows, cols).
        thumbnail: a tile that shows the whole image comes last.
        repeat: how many scales the features of an un-tiled image of a Dynamic-S2 model stand for.
        output_scale: the scale, as an index into ``grids``, whose grid the merged map takes.
        pad: the image is centred on a grey square, not stretched, before it is resized.

    Raises: ImageError if the size is empty; GridError if ``output_scale`` names no scale.
    Source: NVILA, section 2.1.1; upstream's ``dynamic_s2_preprocess`` and ``dynamic_preprocess``.
    """

    size: tuple[int, int]
    tile: int
    grids: tuple[Grid, ...]
    thumbnail: bool = False
    repeat: int = 1
    output_scale: int = -1
    pad: bool = False

    def __post_init__(self) -> None:
        check_size(*self.size)
        scales = len(self.grids) * self.repeat
        if not -scales <= self.output_scale < scales:
            raise GridError(f"output_scale {self.output_scale} names none of {scales} scales: use -1 for the largest")

    @property
    def levels(self) -> tuple[Grid, ...]:
        """The grids in the order of their tiles; a thumbnail is a last grid of one tile."""
        return (*self.grids, Grid(1, 1)) if self.thumbnail else self.grids

    @property
    def tiles(self) -> int:
        """How many tiles the image becomes."""
        return sum(grid.count for grid in self.levels)

    @property
    def merges(self) -> bool:
        """Whether the scales' features are joined to one map (Dynamic-S2, tiled or not)."""
        return len(self.grids) > 1 or self.repeat > 1

    @property
    def output_grid(self) -> Grid:
        """The grid of blocks that the merged map is cut into."""
        return self.grids[self.output_scale if len(self.grids) > 1 else 0]

    @property
    def media_tokens(self) -> int:
        """How many media tokens stand for the image in a prompt: one a tile, or one for a merged map."""
        return 1 if self.merges else self.tiles

    def place(self, tile: int) -> Place:
        """Where tile number ``tile`` lies. Raises: GridError if the plan has no such tile."""
        if not 0 <= tile < self.tiles:
            raise GridError(f"tile {tile} is not in a plan of {self.tiles} tiles: count from 0 to {self.tiles - 1}")
        left = tile
        for scale, grid in enumerate(self.levels):
            if left < grid.count:
                return Place(scale, *divmod(left, grid.cols))
            left -= grid.count
        raise AssertionError("the levels hold all tiles")
