"""Which grid of tiles fits an image best: the closest aspect ratio, ties by area.

Among all grids whose number of tiles lies between two limits, the one whose ratio columns / rows is closest to
the image's width / height wins. Many ties are exact: 2 x 2 and 3 x 3 are both square, and an image of ratio 1.25
lies just between 1/2 and 2. Two rules decide them, as upstream does:

1. Grids are tried from few tiles to many, and a later grid takes an exact tie only if the image has more than half
   of that grid's pixels: a small picture is not blown up to many tiles.
2. Grids of equally many tiles are tried from few columns to many. Upstream sorts a Python ``set`` by tile count
   alone, so their order there is that of CPython's hash table. It can matter only between two grids of the same
   count on either side of the image's ratio with no candidate between them, such as 1 x 2 and 2 x 1 for an image of
   5:4 and exactly two tiles. Fewest columns first gives upstream's answer for all images whenever the upper limit is
   at least one and a half times the lower (compared for every range up to 40 tiles), which includes all released
   settings: in 1-12 and 9-12 no such pair exists; in narrower ranges, upstream's order follows no rule.
"""

from functools import cache

from ..grid import Grid, check_size


@cache
def candidate_grids(fewest: int, most: int) -> tuple[Grid, ...]:
    """All grids of ``fewest`` to ``most`` tiles, by tile count and then by columns."""
    grids = (
        Grid(rows, cols) for cols in range(1, most + 1) for rows in range(1, most // cols + 1) if rows * cols >= fewest
    )
    return tuple(sorted(grids, key=lambda grid: (grid.count, grid.cols)))


def closest_grid(width: int, height: int, *, tile: int, fewest: int, most: int) -> Grid:
    """The grid of ``fewest`` to ``most`` tiles of side ``tile`` that bends a ``width`` x ``height`` image least.

    Raises: ImageError if the image holds no pixels.
    Source: upstream's ``find_closest_aspect_ratio``; the same floating-point steps, so that ties are the same.
    """
    check_size(width, height)
    ratio = width / height
    best = Grid(1, 1)
    least = float("inf")
    for grid in candidate_grids(fewest, most):
        difference = abs(ratio - grid.cols / grid.rows)
        roomy = width * height > 0.5 * tile * tile * grid.cols * grid.rows
        if difference < least or (difference == least and roomy):
            best, least = grid, difference
    return best
