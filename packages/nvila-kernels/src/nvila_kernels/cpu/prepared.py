"""Weights in the packing of the kernels that won, and the operator that multiplies with them.

The operator takes the weights by a number, so that ``torch.compile``, ``export`` and fake tensors see one opaque
operation. The number travels in a tensor: a graph that several layers share must not be compiled for each of them.
"""

from collections.abc import Callable, Mapping
from itertools import count
from typing import Any, Self
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from nvila_kernels.cpu.candidates import candidates
from nvila_kernels.cpu.choice import Choice
from nvila_kernels.cpu.kernel import Codes, GraphRun, Run, bits_of
from nvila_kernels.cpu.shape import DECODE_ROWS, Phase
from nvila_kernels.ops.register import NAMESPACE

_numbers = count()
_known: "WeakValueDictionary[int, Prepared]" = WeakValueDictionary()


class Prepared:
    """Something ready to run on rows of floats, which the operator finds by its number.

    Args:
        run: float32 ``[m, k_i]``, contiguous, one or more -> float32 ``[m, n]``.
        choice: the kernels that it holds.
    """

    def __init__(self, run: GraphRun, choice: Choice) -> None:
        self.run = run
        self.choice = choice
        self.number = next(_numbers)
        _known[self.number] = self

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Shapes: ``[m, k_i]`` of any float type -> ``[m, n]`` of the same."""
        return self.run(*(x.float().contiguous() for x in inputs)).to(inputs[0].dtype)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # it never changes, and a runtime's session has no copy


def prepare(codes: Codes, choice: Choice) -> Prepared:
    """Pack one weight for the chosen kernels; a phase that was not asked for uses the other's."""
    kernels = candidates(bits_of(codes))
    packed: dict[str, Run] = {name: kernels[name].pack(codes) for name in sorted(set(choice.kernels.values()))}
    runs: Mapping[Phase, Run] = {phase: packed[name] for phase, name in choice.kernels.items()}
    (spare, *_) = runs.values()
    decode, prefill = runs.get("decode", spare), runs.get("prefill", spare)

    def run(x: Tensor) -> Tensor:
        return decode(x) if x.shape[0] <= DECODE_ROWS else prefill(x)

    return Prepared(run, choice)


def _run(inputs: list[Tensor], number: Tensor, out_features: int) -> Tensor:
    if not inputs[0].shape[0]:
        return inputs[0].new_empty((0, out_features))
    return _known[int(number)](*inputs)


def _fake(inputs: list[Tensor], number: Tensor, out_features: int) -> Tensor:
    return inputs[0].new_empty((inputs[0].shape[0], out_features))


prepared_rows: Callable[[list[Tensor], Tensor, int], Tensor] = torch.library.custom_op(
    f"{NAMESPACE}::prepared_rows",
    _run,
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor[] inputs, Tensor number, SymInt out_features) -> Tensor",
)
prepared_rows.register_fake(_fake)  # pyright: ignore
