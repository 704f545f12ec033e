"""Activations in eight bits between the forward and the backward pass.

Half of what a block keeps does not belong to linear layers: norms keep their input (in float32, several times), the
gated MLP three hidden vectors. Here a small function keeps its inputs only, in E4M3 with a factor for each row, and
is run again when its gradient is due. The forward pass itself is exact. Attention keeps what it kept: its backward
pass compares its inputs with its result, which would no longer fit together.

Source: COAT (arXiv 2410.19313), which NVILA's FP8 training builds on.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from nvila_train.fp8.numbers import E4M3, Small, shrink


class Stored(torch.autograd.Function):
    """``function(*inputs)``, the inputs kept in eight bits; ``parameters`` are what else needs a gradient."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], count: int, *tensors: Tensor) -> Tensor:
        inputs, parameters = tensors[:count], tensors[count:]
        small = [shrink(each, E4M3, rows=True) for each in inputs]
        ctx.save_for_backward(*(each.values for each in small), *(each.scale for each in small), *parameters)
        ctx.function, ctx.count, ctx.dtypes = function, count, [each.dtype for each in inputs]
        kind = inputs[0].device.type
        ctx.autocast = kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
        return function(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        count: int = ctx.count
        values, scales = ctx.saved_tensors[:count], ctx.saved_tensors[count : 2 * count]
        inputs = [
            Small(values=value, scale=scale).large(dtype).requires_grad_()
            for value, scale, dtype in zip(values, scales, ctx.dtypes, strict=True)
        ]
        parameters: Sequence[Tensor] = ctx.saved_tensors[2 * count :]
        wanted = [*inputs, *(each for each in parameters if each.requires_grad)]
        kind, dtype, enabled = ctx.autocast
        with torch.enable_grad(), torch.autocast(kind, dtype=dtype, enabled=enabled):
            out = ctx.function(*inputs)
        found = iter(torch.autograd.grad(out, wanted, gradient, allow_unused=True))
        of_inputs = [next(found) for _ in inputs]
        return None, None, *of_inputs, *(next(found) if each.requires_grad else None for each in parameters)


def stored(function: Callable[..., Tensor], *inputs: Tensor, parameters: Sequence[Tensor] = ()) -> Tensor:
    """Run a function that keeps its inputs in eight bits. Shapes: inputs ``[..., c]``."""
    if not torch.is_grad_enabled():
        return function(*inputs)
    out = Stored.apply(function, len(inputs), *inputs, *parameters)
    assert isinstance(out, Tensor)
    return out
