"""A linear layer whose three products run in eight bits.

    forward     y  = x W^T        x and W in E4M3
    backward    dx = dy W         dy in E5M2
                dW = dy^T x       the same x that the forward pass multiplied

``x`` is kept for the backward pass as the bytes that were multiplied, half of what bfloat16 takes. ``W`` is kept as
it is, since it is there anyway, and rounded again. With a factor for each row ``dW`` is a bfloat16 product of
unpacked matrices: its sum runs over the rows, and a factor cannot change within a sum.

With current scaling factors come from the tensor itself; with delayed scaling from the largest values of the last
calls, so that a GPU need not read a tensor twice. On a tensor that outgrows them, what lies beyond is cut.
"""

from typing import Any

import torch
from torch import Tensor

from nvila_train.fp8.numbers import E4M3, E5M2, Small, largest, product, shrink, shrink_across, shrink_and_measure
from nvila_train.trainer.precision import Precision


class History:
    """The largest values that a tensor had in its last calls.

    Args:
        length: calls that count.
    """

    def __init__(self, length: int) -> None:
        self.length = length
        self.seen: list[Tensor] = []

    def largest(self, matrix: Tensor) -> Tensor:
        """Of earlier calls; that of this matrix, if there were none."""
        return torch.stack(self.seen).amax() if self.seen else largest(matrix)

    def shrink(self, matrix: Tensor, dtype: torch.dtype) -> Small:
        """Round by the largest of earlier calls, and remember this one."""
        small, now = shrink_and_measure(matrix, dtype, amax=self.largest(matrix))
        self.seen = [*self.seen, now][-self.length :]
        return small

    def save(self) -> Tensor:
        """What is remembered, oldest first: float32 ``[calls]``."""
        return torch.stack(self.seen) if self.seen else torch.empty(0)

    def load(self, seen: Tensor, device: torch.device) -> None:
        """Go on from what ``save`` gave."""
        self.seen = list(seen[-self.length :].to(device).unbind())


class Rounding:
    """How one layer's tensors are rounded. Args: as in ``Precision``."""

    def __init__(self, precision: Precision) -> None:
        self.precision = precision
        self.rows = precision.granularity == "row"
        delayed = precision.scaling == "delayed"
        self.histories = {name: History(precision.history) for name in ("x", "weight", "gradient")} if delayed else {}

    def __call__(self, name: str, matrix: Tensor) -> Small:
        """Round ``x``, ``weight`` or ``gradient``."""
        dtype = E5M2 if name == "gradient" else E4M3
        history = self.histories.get(name)
        return history.shrink(matrix, dtype) if history is not None else shrink(matrix, dtype, rows=self.rows)

    def again(self, weight: Tensor) -> Small:
        """The transpose of a weight that was rounded before, and is not a new value to remember."""
        if self.rows:
            return shrink(weight.t().contiguous(), E4M3, rows=True)
        history = self.histories.get("weight")
        return shrink_across(weight, E4M3, amax=None if history is None else history.largest(weight))


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
        return product(small, rounding("weight", weight), dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        values, scale, weight = ctx.saved_tensors
        rounding: Rounding = ctx.rounding
        small = rounding("gradient", gradient)
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx = product(small, rounding.again(weight), ctx.dtype).to(ctx.given)
        if ctx.needs_input_grad[1]:
            x = Small(values=values, scale=scale) if scale is not None else shrink(values, E4M3, rows=rounding.rows)
            if rounding.rows:
                dw = gradient.to(ctx.dtype).t() @ x.large(ctx.dtype)
            else:
                dw = product(small.across, x.across, torch.float32)
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
