"""Who may look at whom: the masks of attention, True where a query may look at a key."""

from __future__ import annotations

import torch
from torch import Tensor


def causal_mask(length: int, start: int, *, device: torch.device) -> Tensor:
    """True where query ``start + i`` may look at key ``j <= start + i``. Shape: ``[1, 1, length, start + length]``."""
    mask = torch.ones(length, start + length, dtype=torch.bool, device=device)
    return mask.tril(diagonal=start)[None, None]


def padding_mask(keep: Tensor) -> Tensor | None:
    """The mask of a padded batch; None where plain causal attention does it.

    Padding on the right needs no mask, since nothing that counts can look there. A padded position looks at
    itself, so that no softmax runs over nothing.

    Shapes: bool ``[b, t]``, True on positions that count -> bool ``[b, 1, t, t]``.
    """
    if not bool((keep[:, 1:] & ~keep[:, :-1]).any()):
        return None
    length = keep.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=keep.device).tril()
    alone = torch.eye(length, dtype=torch.bool, device=keep.device)
    return ((causal & keep[:, None, :]) | alone)[:, None]


def segment_mask(segments: Tensor, prefixes: Tensor | None = None) -> Tensor:
    """The mask of rows that hold several samples: each position looks back within its segment and its prefix.

        key <= query  and  (segments[key] == segments[query]  or  segments[key] == prefixes[query])

    Args:
        segments: int64 ``[b, t]``, the number of the sample that a position belongs to.
        prefixes: int64 ``[b, t]``, the segment that a position sees beside its own, such as a picture that several
            questions share; a number that no segment has for none. By default none sees another.

    Shapes: -> bool ``[b, 1, t, t]``.
    Source: NVILA, section 3 (packing).
    """
    keys = segments[:, None, :]
    seen = segments[:, :, None] == keys
    if prefixes is not None:
        seen = seen | (prefixes[:, :, None] == keys)
    return seen.tril()[:, None]
