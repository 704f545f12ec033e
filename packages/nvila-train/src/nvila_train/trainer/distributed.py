"""Several processes, one model: each draws its own samples, gradients are summed.

On a CPU two processes of one thread train faster than one process of two, since drawing runs in parallel too.
Alone (the default) nothing is communicated.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

Value = TypeVar("Value")

PATIENCE = timedelta(minutes=10)
"""How long a process waits for the others; the slowest step and the reading of a state must fit in."""

BROKEN = ("closed by peer", "reset by peer", "Broken pipe", "Timed out waiting")
"""What the gloo backend says when a process is gone; it has no class of error for it."""


class LostProcessError(RuntimeError):
    """Another process of the run died or does not answer."""


def rank() -> int:
    """This process's number, 0 alone."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes train together, 1 alone."""
    return dist.get_world_size() if dist.is_initialized() else 1


def join(device: torch.device) -> None:
    """Join the group that ``torchrun`` started, if it did; processes talk about tensors of this device."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group(backend(device), timeout=PATIENCE)


def backend(device: torch.device) -> str:
    """What carries messages: gloo between processors, NCCL between GPUs; numbers of the CPU always by gloo."""
    return "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"


@contextmanager
def group(device: torch.device | None = None) -> Iterator[None]:
    """A process group, also alone, since torch's checkpoints and FSDP need one; the latter on their ``device``."""
    if dist.is_initialized():
        yield
        return
    store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group(backend(device or torch.device("cpu")), store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def watched() -> Iterator[None]:
    """Say in one sentence that a process is gone. Raises: LostProcessError."""
    try:
        yield
    except RuntimeError as error:
        if world() > 1 and (isinstance(error, dist.DistError) or any(sign in str(error) for sign in BROKEN)):
            raise LostProcessError(
                f"process {rank()} of {world()} lost another one: see why that one ended, then start all with --resume"
            ) from error
        raise


def agreed(value: Value) -> Value:
    """What the first process says, in all of them."""
    if world() == 1:
        return value
    said = [value]
    dist.broadcast_object_list(said)
    return said[0]


def sum_(value: Tensor) -> Tensor:
    """Sum a tensor over all processes, in place."""
    if world() > 1:
        dist.all_reduce(value)
    return value


def most(count: int) -> int:
    """The largest of the processes' numbers."""
    value = torch.tensor([count])
    if world() > 1:
        dist.all_reduce(value, dist.ReduceOp.MAX)
    return int(value)


def sum_named(values: Mapping[str, float]) -> dict[str, float]:
    """Sum numbers over all processes, in one message; all must have the same names."""
    names = sorted(values)
    totals = sum_(torch.tensor([values[name] for name in names], dtype=torch.float64)).tolist()
    return dict(zip(names, totals, strict=True))


def sum_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Sum gradients over all processes, in one message and in float32; a missing gradient counts as zero."""
    if world() == 1:
        return
    flat = torch.cat([
        (torch.zeros_like(p) if p.grad is None else p.grad).flatten().float() for p in parameters
    ])  # fmt: skip
    dist.all_reduce(flat)
    parts = flat.split([p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter).to(parameter.dtype)
