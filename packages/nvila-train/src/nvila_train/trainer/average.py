"""Averaged weights: ``average <- decay * average + (1 - decay) * weight`` after each step. Off unless a recipe asks.

The average is float32 whatever the weights are: in bfloat16 it would not move.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Average:
    """An exponential moving average of parameters.

    Args:
        parameters: names and parameters.
        decay: of the average; 0.999 looks back over about a thousand steps.
    """

    def __init__(self, parameters: Iterable[tuple[str, nn.Parameter]], *, decay: float) -> None:
        self.parameters = dict(parameters)
        self.decay = decay
        self.state: dict[str, Tensor] = {
            name: value.detach().to(torch.float32, copy=True) for name, value in self.parameters.items()
        }

    @torch.no_grad()
    def update(self) -> None:
        """Move towards the weights."""
        for name, average in self.state.items():
            average.lerp_(self.parameters[name].detach().to(average.dtype), 1 - self.decay)

    @torch.no_grad()
    def apply(self) -> None:
        """Give the parameters their averages."""
        for name, average in self.state.items():
            self.parameters[name].copy_(average)
