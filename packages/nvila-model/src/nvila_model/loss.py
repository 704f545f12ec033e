"""Cross-entropy over the answers.

Most positions of a sequence are image tokens and questions, at which nothing is learnt, so the scores over
the vocabulary are computed only where a label stands.

Time tokens (``<t0>``, ``<t1>``, ...) mean moments, and a near miss is better than a far one: their target is a
bell curve over the neighbouring time tokens instead of a single one.

Source: upstream's ``soft_cross_entropy``; LITA (arXiv 2403.19046).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from nvila_model.fusion import IGNORE


def token_losses(
    hidden: Tensor,
    labels: Tensor,
    logits: Callable[[Tensor], Tensor],
    *,
    time_tokens: Sequence[int] = (),
    time_deviation: float = 1.0,
) -> Tensor:
    """The loss of every label, in reading order.

    Args:
        hidden: ``[b, t, d]``, after the final norm.
        labels: int64 ``[b, t]``; position ``i`` is predicted from hidden state ``i - 1``.
        logits: hidden states to scores.
        time_tokens: ids of the time tokens in the order of time; empty for plain cross-entropy.
        time_deviation: width of the bell curve, in time tokens.

    Shapes: -> ``[labels that are not IGNORE]`` float32.
    """
    targets = labels[:, 1:]
    learnt = targets != IGNORE
    scores, targets = logits(hidden[:, :-1][learnt]).float(), targets[learnt]
    losses = F.cross_entropy(scores, targets, reduction="none")
    if not time_tokens:
        return losses
    moments = torch.tensor(time_tokens, device=targets.device)
    timed = torch.isin(targets, moments)
    curve = torch.exp(-((targets[timed, None] - moments) ** 2) / (2 * time_deviation**2))
    soft = -(F.log_softmax(scores[timed], dim=-1)[:, moments] * curve / curve.sum(-1, keepdim=True)).sum(-1)
    return losses.masked_scatter(timed, soft)
