"""Delayed scaling: the scale of a float8 cast from the largest values of the casts before it.

A scale that fits needs the largest value of the tensor, and so a first pass over it. A tensor that is cast at every
step (the activations or gradients of one layer) hardly changes from step to step: the largest value of the last steps
gives the scale, one pass casts and notes the largest value for the next. What outgrows the history saturates once.

Source: "FP8 Formats for Deep Learning" (Micikevicius et al., 2022), section 3.2, and Transformer Engine's recipe.
"""

import torch
from torch import Tensor, nn

from nvila_kernels import ops, reference
from nvila_kernels.quantization import FP8_MAX


class DelayedScale(nn.Module):
    """Cast to float8 by the largest value of the last casts.

    ``scale = max(history) / largest code``; 1 before the first cast. Nothing depends on data on the host, so a CUDA
    graph can hold it. A tensor with values that are not finite leaves no mark: the last largest value is noted again.

    Args:
        dtype: ``float8_e4m3fn`` (weights, activations) or ``float8_e5m2`` (gradients).
        history: casts that are remembered.

    Shapes: ``[..., k]`` -> codes ``[..., k]`` and float32 scale ``[1]``.
    Raises: ValueError for another type or an empty history.
    """

    history: Tensor

    def __init__(self, dtype: torch.dtype = torch.float8_e4m3fn, *, history: int = 16) -> None:
        super().__init__()
        if dtype not in FP8_MAX:
            raise ValueError(f"{dtype} is no float8 type known here: use torch.float8_e4m3fn or torch.float8_e5m2")
        if history < 1:
            raise ValueError(f"a history of {history} casts holds none: remember at least 1")
        self.dtype = dtype
        self.register_buffer("history", torch.zeros(history))

    @torch.no_grad()
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scale = reference.fp8_scale(self.history.amax().reshape(1), self.dtype)
        codes, largest = ops.fp8.cast_fp8_amax(x.reshape(-1, x.shape[-1]), scale, self.dtype)
        largest = torch.where(largest.isfinite(), largest, self.history[:1])
        self.history.copy_(torch.cat([largest, self.history[:-1]]))
        return codes.reshape(x.shape), scale
