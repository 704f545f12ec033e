"""AdamW without weight decay, and the learning rate over a run: linear warm-up, then half a cosine.

Source: NVILA, appendix (training recipe): AdamW, no weight decay, cosine, 3 % linear warm-up.
"""

from collections.abc import Iterable, Mapping
from math import cos, pi
from typing import Any

import torch
from torch import nn

WARM_UP = 0.03
"""Share of a run in which the learning rate rises."""


def rate_factor(step: int, steps: int, *, warm_up: float = WARM_UP, floor: float = 0.0) -> float:
    """The factor on the learning rate at ``step`` of ``steps``.

    ``(step + 1) / w`` for the first ``w = ceil(warm_up * steps)`` steps, then
    ``floor + (1 - floor) * (1 + cos(pi * t)) / 2`` with ``t`` from 0 to 1 over the rest.

    Raises: ValueError if the step is not in the run.
    """
    if not 0 <= step < steps:
        raise ValueError(f"step {step} is not in a run of {steps} steps: count from 0 to {steps - 1}")
    rising = -int(-warm_up * steps // 1)
    if step < rising:
        return (step + 1) / rising
    passed = (step - rising) / max(1, steps - rising)
    return floor + (1 - floor) * (1 + cos(pi * passed)) / 2


def adamw(groups: Iterable[Mapping[str, Any]]) -> torch.optim.AdamW:
    """AdamW over parameter groups, each with its own ``lr``; remembers them as the peak of the schedule."""
    return torch.optim.AdamW(
        [{**group, "peak": group["lr"]} for group in groups], weight_decay=0.0, betas=(0.9, 0.98), eps=1e-8
    )


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give every group ``factor`` times its peak learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * factor


def trained(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of a module that are not frozen."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]
