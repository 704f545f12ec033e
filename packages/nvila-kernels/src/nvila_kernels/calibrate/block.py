"""Prepare one block for quantization: scales for each of its folds, AWQ before 4 bits, SmoothQuant before 8."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from nvila_kernels.calibrate.awq import awq_scales
from nvila_kernels.calibrate.fold import Fold, fold_, width
from nvila_kernels.calibrate.observe import Observed
from nvila_kernels.calibrate.smooth import smooth_scales
from nvila_kernels.policy import W4A16, Scheme


def fold_block_(
    block: nn.Module,
    folds: Sequence[Fold],
    observed: Mapping[str, Observed],
    schemes: Mapping[str, Scheme],
    *,
    alpha: float = 0.5,
    stored: torch.dtype | None = None,
) -> dict[str, Observed]:
    """Fold the best scales into a block, in place; its function stays the same up to rounding.

    Args:
        block: of float layers.
        folds: what may be folded, in the order in which it happens; a fold without a target that is to be
            quantized is passed over.
        observed: what the layers of the block see, by name inside it.
        schemes: what they will be quantized to, by name inside it.
        alpha: SmoothQuant's share of the difficulty that moves to the weights.
        stored: the type that norms will be written in, where it is not the one they have now.

    Returns: what the layers see from now on.
    Raises: ValueError naming a layer that was not observed, or targets of one fold with different schemes.
    """
    seen = dict(observed)
    for fold in folds:
        names = [name for name in fold.targets if name in schemes]
        if not names:
            continue
        kinds = {schemes[name] for name in names}
        if len(kinds) > 1:
            raise ValueError(f"{', '.join(names)} share one scale but not one scheme: give them the same")
        unseen = [name for name in fold.targets if name not in seen]
        if unseen:
            raise ValueError(f"no calibration activations of {', '.join(unseen)}: run data that reaches them")
        source, targets = fold.modules(block)
        channels = fold.channels(width(source), targets[0].in_features)
        weights = [target.weight for name, target in zip(fold.targets, targets, strict=True) if name in names]
        scale = best_scale(weights, seen[names[0]], kinds.pop(), channels, alpha)
        real = fold_(source, targets, scale, channels, stored=stored)
        seen |= {name: seen[name].divided(real) for name in fold.targets}
    return seen


def best_scale(weights: Sequence[Tensor], observed: Observed, scheme: Scheme, channels: Tensor, alpha: float) -> Tensor:
    if isinstance(scheme, W4A16):
        return awq_scales(weights, observed.rows, scheme=scheme, channels=channels).scale
    return smooth_scales(observed.largest, weights, alpha=alpha, channels=channels)
