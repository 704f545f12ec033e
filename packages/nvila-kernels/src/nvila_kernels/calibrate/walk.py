"""Calibrate a deep model one block at a time.

The inputs of the first block are caught; from there on each block is run by itself on the outputs of the one
before. At any time the memory holds the hidden states of the calibration data and one block's sample, whatever
the depth.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from nvila_kernels.calibrate.observe import CAPACITY, Observed, observe

Batch = TypeVar("Batch")


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a block; its first argument is the hidden state."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    def then(self, block: nn.Module) -> "Call":
        """The call of the block that follows ``block``."""
        output: Any = block(*self.arguments, **self.keywords)
        hidden = cast(Tensor, output[0] if isinstance(output, tuple) else output)
        return replace(self, arguments=(hidden, *self.arguments[1:]))


class _CaughtError(Exception):
    """Ends a forward pass at the first block."""


@torch.no_grad()
def first_calls(block: nn.Module, forward: Callable[[Batch], object], batches: Iterable[Batch]) -> list[Call]:
    """The calls that ``forward`` makes of ``block``, one a batch; what follows the block is not computed.

    Raises: ValueError if a batch does not reach the block, or the hidden state is no positional argument.
    """
    calls: list[Call] = []

    def catch(_: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        if not arguments:
            raise ValueError("the block is called by keywords only: pass the hidden state as its first argument")
        calls.append(Call(arguments=arguments, keywords=keywords))
        raise _CaughtError

    handle = block.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        for index, batch in enumerate(batches):
            try:
                forward(batch)
            except _CaughtError:
                continue
            raise ValueError(f"calibration batch {index} does not reach the first block: leave it out")
    finally:
        handle.remove()
    if not calls:
        raise ValueError("there is no calibration batch: give at least one")
    return calls


@torch.no_grad()
def walk(
    blocks: Mapping[str, nn.Module],
    forward: Callable[[Batch], object],
    batches: Iterable[Batch],
    *,
    capacity: int = CAPACITY,
) -> Iterator[tuple[str, nn.Module, dict[str, Observed]]]:
    """Each block in turn with what its linear layers saw, free to be changed by the caller.

    A block's outputs are computed before it is handed out, so later blocks see what the unquantized model
    would show them, and each block's error is its own.

    Args:
        blocks: in the order in which the model runs them; the output of each is the first argument of the
            next, all other arguments stay the same. Each is looked up when its turn comes (the first also
            before), so a mapping that loads weights on look-up keeps one block in memory.
        forward: runs the model on one batch, without a cache and without padding.
        batches: calibration data.
        capacity: rows sampled of each layer.
    """
    calls = first_calls(next(iter(blocks.values())), forward, batches)
    for name, block in blocks.items():

        def run(block: nn.Module = block) -> None:
            for index, call in enumerate(calls):  # one by one, so that no second copy of all hidden states is held
                calls[index] = call.then(block)

        yield name, block, observe(block, run, capacity=capacity)
