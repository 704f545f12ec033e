"""What every format keeps to: the tensors of one linear layer, to and from plain codes."""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from nvila_kernels.quantization import Int4Codes, Int8Codes

Tensors = Mapping[str, Tensor]
"""The tensors of one layer by the last part of their names, without the bias."""


class FormatError(ValueError):
    """Tensors or a ``quantization_config`` that cannot be read, or a weight that a format cannot hold."""


class LayerFormat(Protocol):
    """How a file holds the weight of a quantized linear layer.

    Attributes:
        names: last parts of the names of its tensors, the one that tells it from a float layer first.
        optional: further ones that may be there.
    """

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def optional(self) -> tuple[str, ...]: ...

    def read(self, tensors: Tensors) -> Int4Codes | Int8Codes:
        """The weight as plain codes. Raises: FormatError."""
        ...


class WritableFormat(LayerFormat, Protocol):
    """A format that is also written."""

    def write(self, weight: Any) -> dict[str, Tensor]:
        """The tensors of one layer; ``read`` gives the same codes. Raises: FormatError."""
        ...

    def config(self, *, skipped: tuple[str, ...] = ()) -> dict[str, Any]:
        """The ``quantization_config`` of a checkpoint; ``skipped`` names linear layers that stay floats."""
        ...


def group_of(in_features: int, groups: int) -> int:
    """Input features in each of ``groups`` groups. Raises: FormatError if they do not divide."""
    if groups < 1 or in_features % groups:
        raise FormatError(f"{in_features} input features do not divide into {groups} groups: the file is not whole")
    return in_features // groups


def half(scale: Tensor) -> Tensor:
    """Scales as float16. Raises: FormatError if that changes one."""
    found = scale.to(torch.float16)
    if not torch.equal(found.to(scale.dtype), scale):
        raise FormatError(f"{scale.dtype} scales do not fit float16: quantize with scale_dtype=torch.float16")
    return found


def shapes_agree(what: str, found: Tensor, expected: tuple[int, ...]) -> None:
    """Raises: FormatError if a tensor has another shape."""
    if tuple(found.shape) != expected:
        raise FormatError(f"{what} has shape {list(found.shape)}, the other tensors say {list(expected)}")
