"""FastV: after the second layer, half of the image is worth nothing.

In the first layers of a vision-language model attention is spread over everything; from the third on the image gets
next to none of it. FastV drops, once, the image tokens that received least.
"""

from dataclasses import dataclass

from nvila_compress.contract import check_keep
from nvila_compress.decoder.schedule import DropSchedule


@dataclass(frozen=True)
class FastV(DropSchedule):
    """After layer ``layer`` only the most attended image tokens go on.

    Their rank is the mean over heads of the attention of the last token in that layer.

    Args:
        layer: how many layers see all tokens; 2 in the paper.
        keep: a number of image tokens or a share of them; 0.5 in the paper.

    Raises: ValueError for a bad ``keep`` or a layer below 1.
    Source: Chen et al., "An Image is Worth 1/2 Tokens After Layer 2" (arXiv 2403.06764), section 4.
    """

    layer: int = 2
    keep: int | float = 0.5

    def __post_init__(self) -> None:
        check_keep(self.keep)
        if self.layer < 1:
            raise ValueError(f"layer {self.layer} < 1: at least one layer must have read the tokens")

    def shares(self, layers: int) -> dict[int, int | float]:
        return {self.layer: self.keep}
