"""AWQ: find the input channels that matter, and give them the finer steps.

Rounding a weight costs an error proportional to the activation that it meets, and in a language model a few
channels carry activations a hundred times larger than the others. Keeping those weights in 16 bits would help,
but no kernel likes mixed rows. Scaling does the same: multiply the columns of the important channels by
``s > 1`` and divide their activations by ``s``. The step of the group hardly changes, since its maximum lies
elsewhere in most cases, so the error of these columns shrinks by ``s``, at the price of a little more for the
others when the maximum does move.

How far to go is one number: ``s = magnitude^exponent``, with the mean absolute activation as magnitude. Exponent
0 is plain rounding, 1 evens all channels out, and a search over the range between needs only the layers that
share the activation, not the network. Gradients, as in learned rounding, would fit the calibration data
closer than the model deserves.

Every candidate is rounded the way the layer will be in the end, clipped ranges included. Scales found with plain
rounding can make clipping less useful, and the two together worse than clipping alone; found together they cannot,
since exponent 0 is among the candidates. ``benchmarks/bench_quantize.py`` shows what each of the two gives.

Source: AWQ (arXiv 2306.00978), section 3.2. The error is summed over the layers that read one activation, each
relative to its own output, instead of taken behind the attention as the authors' code does.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nvila_kernels.calibrate.clip import in_parts, round_int4
from nvila_kernels.policy import W4A16
from nvila_kernels.quantization import dequantize_int4

ROWS_AT_ONCE = 4096
"""Output rows quantized together: bounds the memory of the search."""


@dataclass(frozen=True, kw_only=True)
class AwqScales:
    """The best scales found.

    Attributes:
        scale: float32 ``[made]``, what the source is divided by.
        exponent: of the activation magnitudes.
        error: ``sum_i |x W_i - x W'_i|^2 / |x W_i|^2`` over the layers, with these scales.
        plain_error: the same without scales, which is exponent 0.
    """

    scale: Tensor
    exponent: float
    error: float
    plain_error: float


@torch.no_grad()
def awq_scales(
    weights: Sequence[Tensor],
    rows: Tensor,
    *,
    scheme: W4A16 | None = None,
    channels: Tensor | None = None,
    steps: int = 10,
) -> AwqScales:
    """Search the scales of one activation, ``magnitude^(i / steps)`` for ``i`` in ``0..steps``.

    Args:
        weights: of all layers that read the activation, ``[n_i, k]`` each.
        rows: calibration activations ``[r, k]``.
        scheme: how the weights will be quantized; by default ``W4A16()``.
        channels: int64 ``[k]``, the scale that each feature takes, where some share one
            (:meth:`~nvila_kernels.calibrate.Fold.channels`); by default each has its own.
        steps: of the grid; the paper takes 20, without clipping in the search.

    Raises: ValueError on widths that do not belong together, or without a row.
    """
    scheme = scheme or W4A16()
    k = rows.shape[1]
    if not weights or any(weight.shape[1] != k for weight in weights):
        shapes = ", ".join(str(list(weight.shape)) for weight in weights)
        raise ValueError(f"rows of {k} features and weights of shape {shapes or 'none'}: give layers that read them")
    if not len(rows):
        raise ValueError("0 calibration rows decide nothing: observe the layers first")
    rows = rows.float()
    channels = torch.arange(k, device=rows.device) if channels is None else channels.to(rows.device)
    magnitude = shared_mean(rows.abs().mean(0), channels)
    energies = [float((rows @ weight.float().T).square().sum()) for weight in weights]
    best: AwqScales | None = None
    for step in range(steps + 1):
        scale = centred(magnitude ** (step / steps))
        errors = [squared_error(weight, rows, scale[channels], scheme) for weight in weights]
        error = sum(e / energy if energy else e for e, energy in zip(errors, energies, strict=True))
        if best is None or error < best.error:
            plain = error if best is None else best.plain_error
            best = AwqScales(scale=scale, exponent=step / steps, error=error, plain_error=plain)
    assert best is not None
    return best


def squared_error(weight: Tensor, rows: Tensor, scale: Tensor, scheme: W4A16) -> float:
    """``|x W - x W'|^2``, ``W'`` being the weight quantized with its columns multiplied by ``scale``."""
    total = 0.0
    for part in in_parts(weight, ROWS_AT_ONCE):
        rounded = dequantize_int4(round_int4(part.float() * scale, rows / scale, scheme)) / scale
        total += float((rows @ (part.float() - rounded).T).square().sum())
    return total


def shared_mean(values: Tensor, channels: Tensor) -> Tensor:
    """The mean of the features that take the same scale: ``[k] -> [made]``."""
    made = int(channels.max()) + 1
    return values.new_zeros(made).scatter_reduce(0, channels, values, "mean", include_self=False)


def centred(scale: Tensor) -> Tensor:
    """Around 1, so that neither side leaves the range of its type; silent channels count as nearly silent."""
    scale = scale.clamp(min=float(scale.max()) * 1e-4) if bool(scale.any()) else torch.ones_like(scale)
    return scale / (scale.max() * scale.min()).sqrt()
