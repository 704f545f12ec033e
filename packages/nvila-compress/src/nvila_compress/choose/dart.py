"""DART: drop what is said twice.

Which token is important is hard to know; which one is a near copy of another is easy. A few tokens are taken as
pivots, and of the rest those go on that resemble the pivots least. One product with a handful of tokens instead of
all with all: the cheapest of the choosers that look at the tokens.
"""

import torch
from torch import Tensor

from nvila_compress.choose.similarity import cosines
from nvila_compress.contract import Choose, highest


class DART(Choose):
    """Keep a few pivots and the tokens that duplicate them least.

    The pivots ``P`` are the ``pivots`` tokens of the largest norm; they go on. Of the others those with the lowest
    ``max_{p in P} cos(x_i, x_p)`` follow.

    Args:
        keep: a number of tokens or a share of them, the pivots among them.
        pivots: how many; at most as many as are kept.

    Shapes: tokens ``[b, n, c]`` -> ``[b, count, c]``. Cost: ``n * pivots * c`` multiplications.
    Raises: as ``Choose``; ValueError for fewer than one pivot.
    Source: Wen et al., "Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More"
        (arXiv 2502.11494), section 4, there inside the language model after a layer, here in front of it and with
        the tokens in the place of its keys.
    """

    def __init__(self, keep: int | float = 0.25, *, pivots: int = 8) -> None:
        super().__init__(keep)
        if pivots < 1:
            raise ValueError(f"pivots {pivots} < 1: pass how many tokens the others are compared with, such as 8")
        self.pivots = pivots

    def pick(self, tokens: Tensor, count: int, grid: tuple[int, int], **context: Tensor) -> Tensor:
        pivots = highest(tokens.square().sum(dim=2), min(self.pivots, count))
        kept = tokens.gather(1, pivots[:, :, None].expand(-1, -1, tokens.shape[2]))
        novelty = -cosines(tokens, kept).amax(dim=2)
        return highest(novelty.scatter(1, pivots, torch.inf), count)
