"""An embedding and output heads that leave the weight as it is in its file.

A vocabulary of 150,000 tokens takes gigabytes in float32, and an answer reads a few hundred of its rows. Mapped from
the file in the file's own type, only those rows are ever in memory.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nvila_model.network.meta import meta_device

GROUP = 64
"""Tokens that are looked at together for the highest score."""


class StoredEmbedding(nn.Embedding):
    """Look up rows in one number format and give them in another.

    Args:
        weight: ``[tokens, width]``, kept as it is.
        dtype: of what is given.

    Shapes: int64 ``[...]`` -> ``[..., width]`` of ``dtype``.
    """

    def __init__(self, weight: Tensor, *, dtype: torch.dtype) -> None:
        with meta_device():
            super().__init__(weight.shape[0], weight.shape[1])
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.given = dtype

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).to(self.given)


class StoredHead(nn.Module):
    """Scores by a weight in the number format of its file; activations are cast to it.

    Args:
        weight: ``[tokens, width]``, kept as it is.

    Shapes: ``[..., width]`` -> ``[..., tokens]`` of the same float type.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return F.linear(hidden.to(self.weight.dtype), self.weight).to(hidden.dtype)


class ScreenedHead(nn.Module):
    """Scores of all tokens by a rough copy of the weight, and of the best of them by the weight itself.

    A token reads the whole head, which in 4 bits takes a quarter of the time; the few scores that decide an answer are
    those of the weight all the same.

    Args:
        rough: ``[..., width]`` -> ``[..., tokens]``.
        weight: ``[tokens, width]``, kept as it is.
        best: how many tokens are scored again.

    Shapes: ``[..., width]`` -> ``[..., tokens]`` of the same float type.
    """

    def __init__(self, rough: nn.Module, weight: Tensor, *, best: int = 64) -> None:
        super().__init__()
        self.rough = rough
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.best = min(best, len(weight))

    def forward(self, hidden: Tensor) -> Tensor:
        scores = self.rough(hidden)
        for row, row_scores in zip(
            hidden.reshape(-1, hidden.shape[-1]), scores.view(-1, len(self.weight)), strict=True
        ):
            best = highest(row_scores, self.best)
            row_scores[best] = self.weight.index_select(0, best).to(row.dtype) @ row
        return scores


def highest(scores: Tensor, count: int) -> Tensor:
    """Where the ``count`` highest scores of many are: in as many groups, those with the highest members.

    Shapes: ``[n]`` -> int64 ``[count]``, in no order.
    """
    whole = len(scores) // GROUP * GROUP
    if whole <= count * GROUP:
        return scores.topk(count, sorted=False).indices
    groups = scores[:whole].view(-1, GROUP).amax(1).topk(count, sorted=False).indices
    members = groups[:, None] * GROUP + torch.arange(GROUP)
    some = torch.cat((members.flatten(), torch.arange(whole, len(scores))))
    return some[scores[some].topk(count, sorted=False).indices]
