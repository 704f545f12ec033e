"""Dynamic-S2 and dynamic tiling: any image to multi-scale tiles and back."""

from .coords import image_to_tile, tile_to_image
from .draw import draw_plan
from .errors import GridError, ImageError, TilingError
from .grid import Grid, TilePlan
from .image_processor import TiledBatch, TilingProcessor
from .merge import merge_grid, merge_scales, split_grid
from .tiler import TiledImage, Tiler, tile_many
from .tilers.dynamic import DynamicTiles
from .tilers.dynamic_s2 import DynamicS2
from .tilers.single import SingleTile
from .towers import features_of

__all__ = [
    "DynamicS2",
    "DynamicTiles",
    "Grid",
    "GridError",
    "ImageError",
    "SingleTile",
    "TilePlan",
    "TiledBatch",
    "TiledImage",
    "Tiler",
    "TilingError",
    "TilingProcessor",
    "draw_plan",
    "features_of",
    "image_to_tile",
    "merge_grid",
    "merge_scales",
    "split_grid",
    "tile_many",
    "tile_to_image",
]
