"""Tiles that are not the same as an earlier one.

The margin of a page, the ground of a chart and a clip that stands still give the same tile again and again, down to the
last bit. To find them takes one pass over the tiles; a vision tower makes thousands.
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor


def distinct(media: Iterable[Tensor]) -> tuple[list[Tensor], list[list[int]]]:
    """Every tile that differs from those before it, and for each medium which of them its tiles are.

    Shapes: ``[tiles, 3, s, s]`` each -> ``[3, s, s]`` each.
    """
    tiles: list[Tensor] = []
    places: list[list[int]] = []
    known: defaultdict[float, list[int]] = defaultdict(list)
    for medium in media:
        own: list[int] = []
        # Equal tiles have equal sums; those with equal sums are compared in full.
        for tile, total in zip(medium, medium.sum((1, 2, 3)).tolist(), strict=True):
            place = next((place for place in known[total] if torch.equal(tiles[place], tile)), None)
            if place is None:
                place = len(tiles)
                tiles.append(tile)
                known[total].append(place)
            own.append(place)
        places.append(own)
    return tiles, places
