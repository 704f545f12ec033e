"""Pixel shuffle: folding in the channel order of other models.

The tokens of a neighbourhood are laid side by side as in ``SpatialToChannel``; what differs between models is the
order of the channels. It matters to whoever has weights: a layer that was trained with one order reads noise in
another. So the orders have names here.
"""

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from nvila_compress.fold.spatial_to_channel import SpatialToChannel

ORDERS = {
    "row_major": "b (h f1) (w f2) c -> b (h w) (f1 f2 c)",
    "channel_major": "b (h f1) (w f2) c -> b (h w) (c f1 f2)",
}
"""``row_major``: token after token along a row (NVILA, Idefics3, SmolVLM, InternVL, Llama 4, Qwen2-VL's merger).
``channel_major``: channel after channel, as ``torch.nn.PixelUnshuffle`` and ``unfold`` do (Mistral 3's merger)."""


class PixelShuffle(SpatialToChannel):
    """Fold each factor x factor neighbourhood of tokens into channels, in a named order.

    ``row_major``: ``(h f1) (w f2) c -> (h w) (f1 f2 c)``; ``channel_major``: ``(h f1) (w f2) c -> (h w) (c f1 f2)``.
    The grid is zero-padded at the bottom and right up to a multiple of ``factor``. No parameters.

    Args:
        factor: side of the neighbourhood.
        order: one of those names.

    Shapes: tokens ``[b, h*w, c]`` -> ``[b, ceil(h/f)*ceil(w/f), f*f*c]``, of any dtype.
    Raises: as ``SpatialToChannel``; ValueError for an unknown order.
    Source: Shi et al., sub-pixel convolution (arXiv 1609.05158), backwards; InternVL 1.5 (arXiv 2404.16821, section
        3.2) and Idefics3 (arXiv 2408.12637) fold by 2, SmolVLM by 2 to 4.
    """

    def __init__(self, factor: int, *, order: str = "row_major") -> None:
        super().__init__(factor)
        if order not in ORDERS:
            raise ValueError(f"no channel order {order!r}: take one of {', '.join(ORDERS)}")
        self.order = order

    def fold(self, tokens: Tensor, grid: tuple[int, int], **context: Tensor) -> Tensor:
        (h, w), f = grid, self.factor
        map_ = rearrange(tokens, "b (h w) c -> b h w c", h=h, w=w)
        map_ = F.pad(map_, (0, 0, 0, -w % f, 0, -h % f))
        return rearrange(map_, ORDERS[self.order], f1=f, f2=f)

    def extra_repr(self) -> str:
        return f"factor={self.factor}, order={self.order!r}"
