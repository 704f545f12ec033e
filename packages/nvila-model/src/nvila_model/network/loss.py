"""Cross-entropy over the answers.

Most positions of a sequence are image tokens and questions, at which nothing is learnt, so the scores over
the vocabulary are computed only where a label stands. Even those are many: 8,000 labels over a vocabulary of
152,000 are 5 GB in float32, and as much again for their gradient. So they are computed some labels at a time, and
once more in the backward pass, instead of being kept.

Time tokens (``<t0>``, ``<t1>``, ...) mean moments, and a near miss is better than a far one: their target is a
bell curve over the neighbouring time tokens instead of a single one.

Source: upstream's ``soft_cross_entropy``; LITA (arXiv 2403.19046).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from nvila_model.inputs.labels import IGNORE

LOSS_CHUNK = 1024
"""Labels whose scores are held at once: 0.6 GB for a vocabulary of 152,000."""


def token_losses(
    hidden: Tensor,
    labels: Tensor,
    logits: Callable[[Tensor], Tensor],
    *,
    time_tokens: Sequence[int] = (),
    time_deviation: float = 1.0,
    chunk: int = LOSS_CHUNK,
) -> Tensor:
    """The loss of every label, in reading order.

    Args:
        hidden: ``[b, t, d]``, after the final norm.
        labels: int64 ``[b, t]``; position ``i`` is predicted from hidden state ``i - 1``.
        logits: hidden states to scores.
        time_tokens: ids of the time tokens in the order of time; empty for plain cross-entropy.
        time_deviation: width of the bell curve, in time tokens.
        chunk: labels whose scores are held at once; the losses are the same for any.

    Shapes: -> ``[labels that are not IGNORE]`` float32.
    Raises: ValueError if ``chunk`` is below 1.
    """
    if chunk < 1:
        raise ValueError(f"chunk {chunk} scores no label: use at least 1")
    targets = labels[:, 1:]
    learnt = targets != IGNORE
    states, targets = hidden[:, :-1][learnt], targets[learnt]
    losses = partial(chunk_losses, logits=logits, time_tokens=time_tokens, time_deviation=time_deviation)
    if len(targets) <= chunk:
        return losses(states, targets)
    parts = zip(states.split(chunk), targets.split(chunk), strict=True)
    return torch.cat([checkpoint(losses, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])


def chunk_losses(
    states: Tensor,
    targets: Tensor,
    *,
    logits: Callable[[Tensor], Tensor],
    time_tokens: Sequence[int],
    time_deviation: float,
) -> Tensor:
    """The losses of some labels. Shapes: ``[n, d]``, int64 ``[n]`` -> float32 ``[n]``."""
    scores = logits(states).float()
    losses = F.cross_entropy(scores, targets, reduction="none")
    if not time_tokens:
        return losses
    moments = torch.tensor(time_tokens, device=targets.device)
    timed = torch.isin(targets, moments)
    curve = torch.exp(-((targets[timed, None] - moments) ** 2) / (2 * time_deviation**2))
    soft = -(F.log_softmax(scores[timed], dim=-1)[:, moments] * curve / curve.sum(-1, keepdim=True)).sum(-1)
    return losses.masked_scatter(timed, soft)
