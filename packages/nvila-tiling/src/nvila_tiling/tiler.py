"""What every tiler keeps to, and batches of images in worker threads."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from .colours import HALVES
from .decode import AnyImage
from .errors import TilingError
from .grid import TilePlan


@dataclass(frozen=True, kw_only=True)
class TiledImage:
    """An image cut into tiles.

    Attributes:
        tiles: float32 ``[n, 3, tile, tile]`` on the CPU, RGB, ``(value / 255 - mean) / std``, in the plan's
            order; channels last in memory.
        plan: how they lie; ``plan.tiles == n``.
        mean: of red, green and blue, that the values were made with.
        std: their deviations.
    """

    tiles: Tensor
    plan: TilePlan
    mean: tuple[float, float, float] = HALVES.mean
    std: tuple[float, float, float] = HALVES.std


class Tiler(Protocol):
    """Anything that turns an image into tiles."""

    def plan(self, width: int, height: int) -> TilePlan:
        """How an image of this size would be tiled; no pixels needed."""
        ...

    def __call__(self, image: AnyImage) -> TiledImage:
        """Tile an image."""
        ...


def tile_many(images: Iterable[AnyImage], tiler: Tiler, *, workers: int = 4) -> list[TiledImage]:
    """Tile images in ``workers`` threads, in order; equal to ``[tiler(image) for image in images]``.

    Decoding, resizing and normalising run outside Python's lock, so threads use separate cores. Each thread holds at
    most one image at a time beyond the results.

    Raises: TilingError if ``workers`` is below 1, and whatever the tiler raises for the first bad image.
    """
    if workers < 1:
        raise TilingError(f"{workers} workers tile nothing: use at least 1")
    if workers == 1:
        return [tiler(image) for image in images]
    with ThreadPoolExecutor(workers, thread_name_prefix="tile") as pool:
        return list(pool.map(tiler, images))
