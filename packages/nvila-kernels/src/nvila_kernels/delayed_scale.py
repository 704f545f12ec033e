"""Delayed scaling: the scale of a float8 cast from the largest values of the casts before it.

A scale that fits needs the largest value of the tensor, and so a first pass over it. A tensor that is cast at every
step (the activations or gradients of one layer) hardly changes from step to step: the largest value of the last steps
gives the scale, one pass casts and notes the largest value for the next. What outgrows the history saturates once.

Source: "FP8 Formats for Deep Learning" (Micikevicius et al., 2022), section 3.2, and Transformer Engine's recipe.
"""

from typing import Any

import torch
from torch import Tensor, nn

from nvila_kernels import ops
from nvila_kernels.functional import check_fp8
from nvila_kernels.quantization import fp8_scale

NO_CAST = -1.0
"""Stands in the history for a cast that was not made yet; a largest value is never negative."""


class DelayedScale(nn.Module):
    """Cast to float8 by the largest value of the last casts.

    ``scale = max(history) / largest code``; the first cast goes by the tensor's own largest value. From the second on
    nothing depends on data on the host, so a CUDA graph can hold it. A tensor with values that are not finite leaves no
    mark: the last largest value is noted again.

    Args:
        dtype: ``float8_e4m3fn`` (weights, activations) or ``float8_e5m2`` (gradients).
        history: casts that are remembered, in the buffer of that name, the last one first.

    Shapes: ``[..., k]`` -> codes ``[..., k]`` and float32 scale ``[1]``.
    Raises: ValueError for another type or an empty history.
    """

    history: Tensor

    def __init__(self, dtype: torch.dtype = torch.float8_e4m3fn, *, history: int = 16) -> None:
        super().__init__()
        check_fp8(dtype)
        if history < 1:
            raise ValueError(f"a history of {history} casts holds none: remember at least 1")
        self.dtype = dtype
        self.register_buffer("history", torch.full((history,), NO_CAST))
        self.begun = False
        self.register_load_state_dict_post_hook(recall)  # pyright: ignore[reportUnknownMemberType]

    @torch.no_grad()
    def load_history(self, history: Tensor) -> None:
        """Go on from the history of another, the last cast first: a longer one is cut, a shorter one filled up."""
        kept = history[: len(self.history)]
        self.history.fill_(NO_CAST)[: len(kept)].copy_(kept)
        recall(self)

    @torch.no_grad()
    def scale(self, x: Tensor) -> Tensor:
        """The scale that the next cast of ``x`` goes by, float32 ``[1]``; nothing is noted."""
        largest = self.history.amax().reshape(1) if self.begun else ops.amax(x.reshape(-1, x.shape[-1]))
        return fp8_scale(torch.where(largest.isfinite(), largest, torch.zeros_like(largest)).clamp_min(0), self.dtype)

    @torch.no_grad()
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scale = self.scale(x)
        codes, largest = ops.cast_fp8_amax(x.reshape(-1, x.shape[-1]), scale, self.dtype)
        largest = torch.where(largest.isfinite(), largest, self.history[:1])
        self.history.copy_(torch.cat([largest, self.history[:-1]]))
        self.begun = True
        return codes.reshape(x.shape), scale

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # A cast of the whole model to 16 bits must not round what scales are made of.
        history = self.history
        super()._apply(fn, recurse)  # pyright: ignore[reportUnknownMemberType]
        if not history.is_meta:
            self.history = history.to(self.history.device)
        return self


def recall(module: DelayedScale, keys: object = None) -> None:
    """Ask a history that was loaded whether there was a cast."""
    module.begun = bool((module.history > NO_CAST).any())
