"""A tiler in the place of an image processor: ``pixel_values`` of whole pictures for a SigLIP or CLIP model."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .decode import AnyImage
from .errors import TilingError
from .grid import TilePlan
from .tilers.dynamic import DynamicTiles
from .tilers.dynamic_s2 import DynamicS2
from .tilers.single import SingleTile


class TiledBatch(dict[str, Tensor]):
    """What a model takes by ``model(**batch)``, and the plans by which its features become maps again."""

    def __init__(self, pixel_values: Tensor, plans: tuple[TilePlan, ...]) -> None:
        super().__init__(pixel_values=pixel_values)
        self.plans = plans

    @property
    def pixel_values(self) -> Tensor:
        """float32 ``[n, 3, tile, tile]``: the tiles of all images, one after the other."""
        return self["pixel_values"]

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> "TiledBatch":
        """The same on another device, in another dtype, or both."""
        return TiledBatch(self.pixel_values.to(device=device, dtype=dtype), self.plans)


@dataclass(frozen=True)
class TilingProcessor:
    """An image processor that cuts pictures into the tiles of a tiler.

    ``TilingProcessor.like(AutoImageProcessor.from_pretrained(...))`` is Dynamic-S2 for that processor's model: its
    size is the side of a tile, its mean and deviation are kept.

    Args:
        tiler: how pictures are cut.
    """

    tiler: DynamicS2 | DynamicTiles | SingleTile

    @classmethod
    def like(cls, processor: object, *, scales: Sequence[int] = (1, 2, 3), max_tiles: int = 12) -> "TilingProcessor":
        """Dynamic-S2 in the place of another image processor.

        Args:
            processor: of transformers; its ``crop_size`` or ``size`` is the side of a tile.
            scales: sides of a square image at each scale, in tiles.
            max_tiles: most tiles of the largest scale.

        Raises: TilingError if it names no square size, or no mean and deviation.
        """
        inner = getattr(processor, "image_processor", processor)
        side = _side(getattr(inner, "crop_size", None)) or _side(getattr(inner, "size", None))
        if side is None:
            raise TilingError(f"a {type(processor).__name__} names no square size: pass a tiler to TilingProcessor")
        tiler = DynamicS2(scales=tuple(side * scale for scale in scales), max_tiles=max_tiles)
        return cls(tiler.for_processor(processor))

    @property
    def image_mean(self) -> tuple[float, float, float]:
        """Of red, green and blue, as in transformers."""
        return self.tiler.mean

    @property
    def image_std(self) -> tuple[float, float, float]:
        """Deviations of red, green and blue."""
        return self.tiler.std

    def __call__(self, images: AnyImage | Sequence[AnyImage], return_tensors: str = "pt") -> TiledBatch:
        """Tiles of one image or several, in order. Raises: ImageError; TilingError for another tensor kind."""
        if return_tensors != "pt":
            raise TilingError(f"return_tensors {return_tensors!r} is not known: tiles are torch's, 'pt'")
        several: list[AnyImage] = [images] if isinstance(images, (Image.Image, np.ndarray, Tensor)) else list(images)
        if not several:
            raise TilingError("no images: pass one or a list of them")
        tiled = [self.tiler(image) for image in several]
        return TiledBatch(torch.cat([image.tiles for image in tiled]), tuple(image.plan for image in tiled))

    preprocess = __call__


def _side(size: object) -> int | None:
    """The side of a square, of transformers' several ways to write one."""
    if isinstance(size, int):
        return size
    named = {name: getattr(size, name, None) for name in ("height", "width", "shortest_edge")}
    if isinstance(size, dict):
        named = {name: size.get(name) for name in named}  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
    if named["height"] is not None and named["height"] == named["width"]:
        return int(named["height"])
    return int(named["shortest_edge"]) if named["shortest_edge"] else None
