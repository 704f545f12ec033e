"""From the features of tiles to one map per image, and between maps and blocks.

A Dynamic-S2 image has been seen at several scales. Each scale's tiles are stitched to one map, all maps are brought
to the size of the chosen scale by area interpolation, and their channels are concatenated from the smallest scale to
the largest: every place then carries what was seen there from afar and from near.
"""

from collections.abc import Sequence
from math import isqrt

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor

from .errors import GridError
from .grid import Grid, TilePlan


def split_grid(map: Tensor, grid: Grid) -> Tensor:
    """Cut a map into the blocks of a grid, row by row.

    ``(rows h) (cols w) c -> (rows cols) h w c``

    Shapes: map ``[rows*h, cols*w, c]`` of any dtype -> ``[rows*cols, h, w, c]``.
    Raises: GridError if the sides of the map are not multiples of the grid.
    """
    if map.ndim != 3 or map.shape[0] % grid.rows or map.shape[1] % grid.cols:
        raise GridError(
            f"a map of shape {list(map.shape)} does not divide into {grid.rows} x {grid.cols} blocks: "
            f"give [H, W, c] with H a multiple of {grid.rows} and W of {grid.cols}"
        )
    return rearrange(map, "(rows h) (cols w) c -> (rows cols) h w c", rows=grid.rows, cols=grid.cols)


def merge_grid(blocks: Tensor, grid: Grid) -> Tensor:
    """Stitch blocks together; the inverse of ``split_grid``.

    ``(rows cols) h w c -> (rows h) (cols w) c``

    Shapes: blocks ``[rows*cols, h, w, c]`` of any dtype -> ``[rows*h, cols*w, c]``.
    Raises: GridError if there are not ``rows*cols`` blocks.
    """
    if blocks.ndim != 4 or blocks.shape[0] != grid.count:
        raise GridError(
            f"blocks of shape {list(blocks.shape)} do not fill {grid.rows} x {grid.cols}: give [{grid.count}, h, w, c]"
        )
    return rearrange(blocks, "(rows cols) h w c -> (rows h) (cols w) c", rows=grid.rows, cols=grid.cols)


def merge_scales(features: Tensor, plans: Sequence[TilePlan]) -> list[Tensor]:
    """Join the features of many images' tiles to one map per image.

    Each scale's map is resized by area interpolation in float32, whatever the dtype of the features; an un-tiled
    image's features are repeated for every scale.

    Args:
        features: the tiles of all images in the order of ``plans``.
        plans: one plan an image.

    Shapes: features ``[tiles, h*w, c]`` of square tiles -> per image ``[H, W, scales*c]`` of the same dtype, where
        ``H = output_grid.rows * h`` and ``W = output_grid.cols * w``.
    Raises: GridError if the tiles are not those of the plans, a tile is not square, or a plan has a thumbnail.
    Source: NVILA, section 2.1.1; upstream's ``merge_features_for_dynamic_s2``.
    """
    expected = sum(plan.tiles for plan in plans)
    if features.ndim != 3 or features.shape[0] != expected:
        raise GridError(
            f"features of shape {list(features.shape)} are not those of {expected} tiles: pass [{expected}, h*w, c]"
        )
    side = isqrt(features.shape[1])
    if side * side != features.shape[1]:
        raise GridError(f"{features.shape[1]} features a tile do not form a square: pass h*h of them")
    per_image = torch.split(rearrange(features, "n (h w) c -> n h w c", h=side), [plan.tiles for plan in plans])
    return [_merge_image(tiles, plan) for tiles, plan in zip(per_image, plans, strict=True)]


def _merge_image(tiles: Tensor, plan: TilePlan) -> Tensor:
    """The map of one image: ``[tiles, h, w, c] -> [H, W, scales*c]``."""
    if plan.thumbnail:
        raise GridError("a plan with a thumbnail has no merged map: its tiles stay apart, one media token each")
    scales = torch.split(tiles, [grid.count for grid in plan.grids])
    maps = [merge_grid(blocks, grid) for blocks, grid in zip(scales, plan.grids, strict=True)]
    if len(maps) == 1:
        return repeat(maps[0], "h w c -> h w (scales c)", scales=plan.repeat)
    height, width, _ = maps[plan.output_scale].shape
    return torch.cat([_resize_map(scale, height, width) for scale in maps], dim=-1)


def _resize_map(map: Tensor, height: int, width: int) -> Tensor:
    """Area interpolation ``[h, w, c] -> [height, width, c]``, computed in float32."""
    if map.shape[:2] == (height, width):
        return map
    planes = rearrange(map.to(torch.float32), "h w c -> 1 c h w")
    resized = F.interpolate(planes, size=(height, width), mode="area")
    return rearrange(resized, "1 c h w -> h w c").to(map.dtype)
