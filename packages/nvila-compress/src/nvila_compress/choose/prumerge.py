"""PruMerge: what the class token attended to, each with its nearest of the rest.

As in VisionZip the attended tokens go on. But nothing is merged far away: each takes in only the few dropped tokens
that resemble it most, weighted by their attention, and a dropped token may serve several.
"""

import torch
from torch import Tensor

from nvila_compress.choose.similarity import cosines
from nvila_compress.contract import Choose, gather, in_float32


class PruMerge(Choose):
    """Keep the most attended tokens, each averaged with its nearest dropped ones.

    ``y_p = (a_p x_p + sum_q a_q x_q) / (a_p + sum_q a_q)`` over the ``neighbors`` dropped tokens ``q`` of the highest
    ``cos(x_p, x_q)``, with ``a`` the attention received.

    Args:
        keep: a number of tokens or a share of them. The paper takes as many as there are outliers of the attention,
            another number for each image; here it is known before.
        neighbors: dropped tokens that each kept one takes in, 32 as in the authors' setting, if there are as many.

    Shapes: tokens ``[b, n, c]``, ``attention=[b, n]`` (``attention_received``) -> ``[b, count, c]``.
    Raises: as ``Choose``; ValueError for a negative number of neighbors.
    Source: Shang et al., LLaVA-PruMerge (arXiv 2403.15388), section 3. There the likeness is that of the keys, here of
        the tokens.
    """

    needs = frozenset({"attention"})

    def __init__(self, keep: int | float = 0.25, *, neighbors: int = 32) -> None:
        super().__init__(keep)
        if neighbors < 0:
            raise ValueError(f"neighbors {neighbors} < 0: pass how many dropped tokens a kept one takes in, such as 32")
        self.neighbors = neighbors

    def score(self, tokens: Tensor, grid: tuple[int, int], **context: Tensor) -> Tensor:
        return context["attention"]

    def choose(self, tokens: Tensor, count: int, grid: tuple[int, int], **context: Tensor) -> tuple[Tensor, Tensor]:
        kept, positions = super().choose(tokens, count, grid, **context)
        neighbors = min(self.neighbors, tokens.shape[1] - count)
        if neighbors == 0:
            return kept, positions
        with torch.no_grad(), torch.autocast(tokens.device.type, enabled=False):
            x, attention = in_float32(tokens), in_float32(context["attention"])
            likeness = cosines(gather(x, positions), x)
            likeness = likeness.scatter(2, positions[:, None].expand(-1, count, -1), -torch.inf)
            nearest = likeness.topk(neighbors, dim=2).indices
            taken = torch.zeros_like(likeness).scatter(2, nearest, 1.0)
            taken = taken.scatter(2, positions[:, :, None], 1.0) * attention.clamp_min(1e-12)[:, None, :]
            weights = taken / taken.sum(dim=2, keepdim=True)
        return (weights @ in_float32(tokens)).to(tokens.dtype), positions
