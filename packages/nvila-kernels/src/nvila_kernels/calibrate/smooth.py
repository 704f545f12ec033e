"""SmoothQuant: move the difficulty of quantizing from the activations to the weights.

With 8 bits for both, a token's scale is set by its largest channel. Where one channel is a hundred times larger
than the others, these are left with one or two bits. Weights have no such channels, so half of the difference
(``alpha``) moves over to them: ``s = max|x|^alpha / max|W|^(1 - alpha)`` for each channel.

Source: SmoothQuant (arXiv 2211.10438), equation 4.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def smooth_scales(
    largest: Tensor, weights: Sequence[Tensor], *, alpha: float = 0.5, channels: Tensor | None = None
) -> Tensor:
    """What the source of an activation is divided by, and the columns of its readers multiplied with.

    Args:
        largest: ``max|x|`` of each feature over the calibration data, ``[k]``.
        weights: of all layers that read the activation, ``[n_i, k]`` each.
        alpha: share of the difficulty that moves: 0 none of it, 1 all.
        channels: int64 ``[k]``, the scale that each feature takes, where some share one
            (:meth:`~nvila_kernels.calibrate.Fold.channels`); by default each has its own.

    Returns: float32 ``[made]``; 1 where a channel or its weights are zero.
    Raises: ValueError on widths that do not belong together, or an alpha outside 0..1.
    """
    k = len(largest)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha {alpha} moves no share of the difficulty: use 0 to 1")
    if not weights or any(weight.shape[1] != k for weight in weights):
        shapes = ", ".join(str(list(weight.shape)) for weight in weights)
        raise ValueError(f"{k} features and weights of shape {shapes or 'none'}: give layers that read them")
    columns = torch.stack([weight.float().abs().amax(0) for weight in weights]).amax(0)
    channels = torch.arange(k, device=columns.device) if channels is None else channels.to(columns.device)
    activation, weight = shared_largest(largest.float(), channels), shared_largest(columns, channels)
    scale = activation**alpha / weight ** (1 - alpha)
    return torch.where((activation > 0) & (weight > 0), scale, torch.ones_like(scale))


def shared_largest(values: Tensor, channels: Tensor) -> Tensor:
    """The largest of the features that take the same scale: ``[k] -> [made]``."""
    made = int(channels.max()) + 1
    return values.new_zeros(made).scatter_reduce(0, channels, values, "amax", include_self=False)
