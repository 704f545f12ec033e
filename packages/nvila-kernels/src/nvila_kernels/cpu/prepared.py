"""A weight in the packing of the kernels that won, and the operator that multiplies with it.

The operator takes the weight by its number, so that ``torch.compile``, ``export`` and fake tensors see one opaque
operation. The number travels in a tensor: a graph that several layers share must not be compiled for each of them.
"""

from collections.abc import Mapping
from itertools import count
from typing import Any, Self
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from nvila_kernels.cpu.candidates import candidates
from nvila_kernels.cpu.choice import Choice
from nvila_kernels.cpu.kernel import Codes, Run, bits_of
from nvila_kernels.cpu.shape import DECODE_ROWS, Phase
from nvila_kernels.ops.register import NAMESPACE

_numbers = count()
_known: "WeakValueDictionary[int, Prepared]" = WeakValueDictionary()


class Prepared:
    """One packed weight.

    Args:
        codes: the weight; not kept.
        choice: the kernels to pack it for; a phase that was not asked for uses the other's.

    Attributes:
        number: by which the operator finds it.
        choice: as given.
    """

    def __init__(self, codes: Codes, choice: Choice) -> None:
        kernels = candidates(bits_of(codes))
        packed: dict[str, Run] = {name: kernels[name].pack(codes) for name in sorted(set(choice.kernels.values()))}
        runs: Mapping[Phase, Run] = {phase: packed[name] for phase, name in choice.kernels.items()}
        (spare, *_) = runs.values()
        self.decode, self.prefill = runs.get("decode", spare), runs.get("prefill", spare)
        self.choice = choice
        self.number = next(_numbers)
        _known[self.number] = self

    def __call__(self, x: Tensor) -> Tensor:
        """Shapes: ``[m, k]`` of any float type -> ``[m, n]`` of the same."""
        run = self.decode if x.shape[0] <= DECODE_ROWS else self.prefill
        return run(x.float().contiguous()).to(x.dtype)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # it never changes, and a runtime's session has no copy


def _run(x: Tensor, number: Tensor, out_features: int) -> Tensor:
    if not x.shape[0]:
        return x.new_empty((0, out_features))
    return _known[int(number)](x)


def _fake(x: Tensor, number: Tensor, out_features: int) -> Tensor:
    return x.new_empty((x.shape[0], out_features))


prepared_linear: Any = torch.library.custom_op(
    f"{NAMESPACE}::prepared_linear",
    _run,
    mutates_args=(),
    device_types="cpu",
    schema="(Tensor x, Tensor number, SymInt out_features) -> Tensor",
)
prepared_linear.register_fake(_fake)
