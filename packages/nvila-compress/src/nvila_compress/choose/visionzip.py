"""VisionZip: what the tower attended to, and a summary of the rest.

In a vision tower a few tokens collect most of the attention. They go on as they are (dominant). The rest would be lost
with what nobody looked at; so a few of them, evenly spaced, each take the mean of those that resemble it (contextual).
"""

import torch
from torch import Tensor

from nvila_compress.choose.similarity import cosines
from nvila_compress.contract import gather, highest
from nvila_compress.merge.pairs import Merge


class VisionZip(Merge):
    """Keep the most attended tokens and merge the rest into a few of their kind.

    ``round(contextual * count)`` of the kept tokens are contextual, the others dominant: those with the highest
    attention. Of the tokens that are not dominant, evenly spaced ones are the contextual targets; each other one
    joins the target of the highest cosine, and a target becomes the mean of its group.

    Args:
        keep: a number of tokens or a share of them, dominant and contextual together.
        contextual: their share; 10 of 64 in the paper.

    Shapes: tokens ``[b, n, c]``, ``attention=[b, n]`` (``attention_received``) -> ``[b, count, c]``.
    Raises: as ``Choose``; ValueError for a ``contextual`` outside ``[0, 1)``.
    Source: Yang et al., VisionZip (arXiv 2412.04467), section 3.2. There the likeness is that of the keys of the
        tower's last layer, here of the tokens.
    """

    needs = frozenset({"attention"})

    def __init__(self, keep: int | float = 0.25, *, contextual: float = 10 / 64) -> None:
        super().__init__(keep)
        if not 0 <= contextual < 1:
            raise ValueError(f"contextual {contextual} is not in [0, 1): pass the share of merged tokens, such as 0.16")
        self.contextual = contextual

    def pair(self, tokens: Tensor, count: int, grid: tuple[int, int], **context: Tensor) -> Tensor:
        n, device = tokens.shape[1], tokens.device
        targets = min(int(self.contextual * count + 0.5), count - 1)
        dominant = highest(context["attention"], count - targets)
        is_dominant = torch.zeros_like(context["attention"]).scatter(1, dominant, 1.0)
        own = torch.arange(n, device=device).expand(tokens.shape[0], -1)
        if targets == 0:
            return torch.where(is_dominant > 0, own, -1)
        rest = highest(1 - is_dominant, n - dominant.shape[1])
        spaced = (2 * torch.arange(targets, device=device) + 1) * rest.shape[1] // (2 * targets)
        target = rest[:, spaced]
        nearest = cosines(tokens, gather(tokens, target)).argmax(dim=2)
        owners = torch.where(is_dominant > 0, own, target.gather(1, nearest))
        return owners.scatter(1, target, target)
