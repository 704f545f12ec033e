"""Coordinates between an image and its tiles, for grounding: boxes and points that a model reads off a tile.

Coordinates are continuous pixels, (x, y) from the top left corner: an image spans 0 to width and 0 to height, a tile
0 to ``plan.tile`` both ways, and the centre of the first pixel is (0.5, 0.5). The image is the upright one, after its
EXIF rotation, as in ``plan.size``.
"""

import torch
from torch import Tensor

from .errors import GridError
from .grid import Grid, TilePlan


def tile_to_image(points: Tensor, plan: TilePlan, *, tile: int | Tensor) -> Tensor:
    """Move points from a tile to the image.

    ``x_image = (col * side + x) * width / (cols * side)``, and likewise y; less the border if the plan pads.

    Args:
        points: (x, y) in pixels of the tile; a box is two points.
        plan: the image's plan.
        tile: the tile's number in the plan, one for all points or one each.

    Shapes: points ``[..., 2]``, tile ``[...]`` or an int -> float ``[..., 2]``; integers become the default float type.
    Raises: GridError for points of another shape, or a tile that the plan does not have.
    """
    points = _check_points(points)
    numbers = torch.as_tensor(tile, device=points.device)
    if bool(((numbers < 0) | (numbers >= plan.tiles)).any()):
        raise GridError(
            f"tiles {numbers.min().item()} to {numbers.max().item()} are not all in a plan of {plan.tiles} tiles: "
            f"count from 0 to {plan.tiles - 1}"
        )
    origin, step, border = _geometry(plan, points)
    return (origin[numbers] + points) * step[numbers] - border


def image_to_tile(points: Tensor, plan: TilePlan, *, scale: int = -1) -> tuple[Tensor, Tensor]:
    """Find the tile of one scale in which each point of the image lies, and its place there.

    A point on an edge belongs to the tile on its right or below; a point outside the image to the nearest tile, with
    coordinates beyond that tile's edge. ``tile_to_image`` takes the answer back to where it came from.

    Args:
        points: (x, y) in pixels of the image; a box is two points, which may lie in two tiles.
        plan: the image's plan.
        scale: index into ``plan.grids``, -1 for the finest; ``len(plan.grids)`` names the thumbnail, if there is one.

    Shapes: points ``[..., 2]`` -> tile numbers int64 ``[...]`` and points in them, float ``[..., 2]``.
    Raises: GridError for points of another shape or not finite, or a scale that the plan does not have.
    """
    points = _check_points(points)
    if not bool(torch.isfinite(points).all()):
        raise GridError("points that are not finite lie in no tile: pass numbers")
    if not -len(plan.grids) <= scale < len(plan.levels):
        raise GridError(f"scale {scale} is none of the plan's {len(plan.grids)}: use 0 to {len(plan.grids) - 1}, or -1")
    level = scale % len(plan.grids) if scale < 0 else scale
    grid = plan.levels[level]
    first = sum(below.count for below in plan.levels[:level])
    origin, step, border = _geometry(plan, points)
    on_grid = (points + border) / step[first]
    limit = points.new_tensor([grid.cols - 1, grid.rows - 1])
    col, row = (on_grid / plan.tile).floor().clamp(min=0).minimum(limit).long().unbind(-1)
    number = first + row * grid.cols + col
    return number, on_grid - origin[number]


def _check_points(points: Tensor) -> Tensor:
    if points.ndim < 1 or points.shape[-1] != 2:
        raise GridError(f"points of shape {list(points.shape)} are not (x, y) pairs: pass [..., 2]")
    return points if points.is_floating_point() else points.to(torch.get_default_dtype())


def _geometry(plan: TilePlan, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the tiles lie.

    Returns: per tile its origin in pixels of its resized image ``[n, 2]``, per tile the image pixels that one of its
    pixels spans ``[n, 2]``, and the border that padding puts on the left and above ``[2]``.
    """
    width, height = plan.size
    side = max(plan.size)
    shown = (side, side) if plan.pad else plan.size
    border = ((side - width) // 2, (side - height) // 2) if plan.pad else (0, 0)
    origins = [(col * plan.tile, row * plan.tile) for grid in plan.levels for row, col in _cells(grid)]
    steps = [
        (shown[0] / (grid.cols * plan.tile), shown[1] / (grid.rows * plan.tile))
        for grid in plan.levels
        for _ in range(grid.count)
    ]
    return like.new_tensor(origins), like.new_tensor(steps), like.new_tensor(border)


def _cells(grid: Grid) -> list[tuple[int, int]]:
    """(row, col) of each tile, row by row."""
    return [(row, col) for row in range(grid.rows) for col in range(grid.cols)]
