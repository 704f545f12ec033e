"""A linear layer whose three products run in eight bits.

    forward     y  = x W^T        x and W in E4M3
    backward    dx = dy W         dy in E5M2
                dW = dy^T x       the same x that the forward pass multiplied

``x`` is kept for the backward pass as the bytes that were multiplied, half of what bfloat16 takes. ``W`` is kept as
it is, since it is there anyway, and rounded again. With a factor for each row ``dW`` is a bfloat16 product of
unpacked matrices: its sum runs over the rows, and a factor cannot change within a sum.

With current scaling factors come from the tensor itself; with delayed scaling from the largest values of the last
calls (``nvila_kernels.DelayedScale``), so that a GPU need not read a tensor twice. On a tensor that outgrows them, what
lies beyond is cut.
"""

from typing import Any

import torch
from nvila_kernels import DelayedScale
from torch import Tensor

from nvila_train.fp8.numbers import E4M3, E5M2, PRODUCTS, Small, shrink, shrink_across
from nvila_train.trainer.precision import Precision

DTYPES = {"x": E4M3, "weight": E4M3, "gradient": E5M2}
"""Of the tensors that a layer multiplies."""


class Rounding:
    """How one layer's tensors are rounded and multiplied.

    Args:
        precision: as the recipe has it.
        device: of the layer, where the histories of delayed scaling are kept.
    """

    def __init__(self, precision: Precision, device: torch.device | None = None) -> None:
        self.precision = precision
        self.rows = precision.granularity == "row"
        self.product = PRODUCTS[precision.backend]
        delayed = precision.scaling == "delayed"
        self.histories = {
            name: DelayedScale(dtype, history=precision.history).to(device)
            for name, dtype in (DTYPES.items() if delayed else ())
        }

    def __call__(self, name: str, matrix: Tensor) -> Small:
        """Round ``x``, ``weight`` or ``gradient``."""
        history = self.histories.get(name)
        if history is None:
            return shrink(matrix, DTYPES[name], rows=self.rows)
        values, scale = history(matrix)
        return Small(values=values, scale=scale.reshape(()))

    def again(self, weight: Tensor) -> Small:
        """The transpose of a weight that was rounded before, and is not a new value to remember."""
        if self.rows:
            return shrink(weight.t().contiguous(), E4M3, rows=True)
        history = self.histories.get("weight")
        return shrink_across(weight, E4M3, scale=None if history is None else history.scale(weight))


class Linear8(torch.autograd.Function):
    """``x W^T`` in eight bits. Shapes: ``[m, k]``, ``[n, k]`` -> ``[m, n]`` in ``dtype``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, rounding: Rounding, dtype: torch.dtype) -> Tensor:
        small = rounding("x", x)
        kept: tuple[Tensor | None, Tensor | None] = (None, None)
        if ctx.needs_input_grad[1]:  # a frozen weight, as under an adapter, needs no x
            kept = (small.values, small.scale) if rounding.precision.store else (x, None)
        ctx.save_for_backward(*kept, weight)
        ctx.rounding, ctx.dtype, ctx.given = rounding, dtype, x.dtype
        return rounding.product(small, rounding("weight", weight), dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        values, scale, weight = ctx.saved_tensors
        rounding: Rounding = ctx.rounding
        small = rounding("gradient", gradient)
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = rounding.product(small, rounding.again(weight), ctx.dtype).to(ctx.given)
        if ctx.needs_input_grad[1]:
            x = Small(values=values, scale=scale) if scale is not None else shrink(values, E4M3, rows=rounding.rows)
            if rounding.rows:
                dw = gradient.to(ctx.dtype).t() @ x.large(ctx.dtype)
            else:
                dw = rounding.product(small.across, x.across, torch.float32)
            dw = dw.to(weight.dtype)
        return dx, dw, None, None


def linear8(x: Tensor, weight: Tensor, bias: Tensor | None, rounding: Rounding) -> Tensor:
    """A linear layer in eight bits. Shapes: ``[..., k]``, ``[n, k]``, ``[n]`` -> ``[..., n]``.

    The result has the dtype that autocast asks for, that of ``x`` otherwise.
    """
    kind = x.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    out = Linear8.apply(x.flatten(0, -2), weight, rounding, dtype)
    assert isinstance(out, Tensor)
    out = out.unflatten(0, x.shape[:-1])
    return out if bias is None else out + bias.to(out.dtype)
