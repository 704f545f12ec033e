"""Several processes, one model: each draws its own samples, gradients are summed.

On a CPU two processes of one thread train faster than one process of two, since drawing runs in parallel too.
Alone (the default) nothing is communicated.
"""

import os
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn


def rank() -> int:
    """This process's number, 0 alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes train together, 1 alone."""
    return dist.get_world_size() if dist.is_initialized() else 1


def join() -> None:
    """Join the group that ``torchrun`` started, if it did."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("gloo")


def sum_(value: Tensor) -> Tensor:
    """Sum a tensor over all processes, in place."""
    if world() > 1:
        dist.all_reduce(value)
    return value


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Sum gradients over all processes, in one message; a missing gradient counts as zero."""
    if world() == 1:
        return
    flat = torch.cat([
        (torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters
    ])  # fmt: skip
    dist.all_reduce(flat)
    parts = flat.split([p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter)
