"""Weights in the packing of the kernels that won, and the operator that multiplies with them.

The operator takes the weights by a number, so that ``torch.compile``, ``export`` and fake tensors see one opaque
operation. The number travels in a tensor: a graph that several layers share must not be compiled for each of them.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any, Self
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from nvila_kernels.cpu.candidates import candidates
from nvila_kernels.cpu.kernel import Codes, Run, bits_of
from nvila_kernels.cpu.selection import KernelChoice
from nvila_kernels.cpu.shape import DECODE_ROWS, Phase
from nvila_kernels.ops.register import NAMESPACE

_numbers = count()
_known: "WeakValueDictionary[int, PackedWeight]" = WeakValueDictionary()


class PackedWeight:
    """Something ready to run, which the operator finds by its number.

    Args:
        run: makes one tensor of some, the last of which it may change in place.
        choice: the kernels that it holds.
    """

    def __init__(self, run: Callable[..., Tensor], choice: KernelChoice) -> None:
        self.run = run
        self.choice = choice
        self.number = next(_numbers)
        _known[self.number] = self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # it never changes, and a runtime's session has no copy


def prepare(codes: Codes, choice: KernelChoice) -> PackedWeight:
    """Pack one weight for the chosen kernels; a phase that was not asked for uses the other's.

    Shapes: ``[..., k]`` of any float type -> ``[..., n]`` of the same.
    """
    kernels = candidates(bits_of(codes))
    packed = {name: kernels[name].pack(codes) for name in sorted(set(choice.kernels.values()))}
    return prepared(packed, choice, outputs=len(codes.codes))


def prepared(packed: Mapping[str, Run], choice: KernelChoice, *, outputs: int) -> PackedWeight:
    """Of what multiplies by a weight that is packed, by kernel; see ``prepare``."""
    runs: Mapping[Phase, Run] = {phase: packed[name] for phase, name in choice.kernels.items()}
    (spare, *_) = runs.values()
    decode, prefill = runs.get("decode", spare), runs.get("prefill", spare)

    def run(x: Tensor) -> Tensor:
        rows = x.float().reshape(-1, x.shape[-1]).contiguous()
        if not len(rows):
            return x.new_empty(*x.shape[:-1], outputs)
        out = decode(rows) if len(rows) <= DECODE_ROWS else prefill(rows)
        return out.view(*x.shape[:-1], -1).to(x.dtype)

    return PackedWeight(run, choice)


def _run(inputs: Sequence[Tensor], changed: Sequence[Tensor], number: Tensor, sizes: Sequence[int]) -> Tensor:
    return _known[int(number)].run(*inputs, *changed)


def _fake(inputs: Sequence[Tensor], changed: Sequence[Tensor], number: Tensor, sizes: Sequence[int]) -> Tensor:
    return inputs[0].new_empty(sizes)


packed_run: Callable[[Sequence[Tensor], Sequence[Tensor], Tensor, Sequence[int]], Tensor] = torch.library.custom_op(
    f"{NAMESPACE}::packed_run",
    _run,
    mutates_args=("changed",),
    device_types="cpu",
    schema="(Tensor[] inputs, Tensor(a!)[] changed, Tensor number, SymInt[] sizes) -> Tensor",
)
packed_run.register_fake(_fake)  # pyright: ignore
