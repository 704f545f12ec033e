"""Number formats of a training step: of its products, and of weights with their gradients and optimizer states."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, ClassVar, Final, Literal, get_args

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

PrecisionName = Literal["fp32", "bf16", "fp8"]

WeightsName = Literal["fp32", "bf16"]
WEIGHTS: Final[Mapping[str, torch.dtype]] = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""Formats of weights that learn; their gradients and optimizer states have the same."""


@dataclass(frozen=True)
class Precision:
    """Number formats of a training step.

    ``fp8``: products of linear layers in E4M3 forward and E5M2 backward, all else as ``bf16``; see ``nvila_train.fp8``.
    The other fields say how, and count for ``fp8`` only.

    Args:
        name: ``fp32``, ``bf16`` or ``fp8``.
        scaling: factors from the tensor itself, or from its last calls.
        granularity: a factor for each tensor, or for each row.
        history: calls that delayed scaling looks back.
        store: keep activations for the backward pass in eight bits.
        backend: whose products: ``torch`` is Transformer Engine on Hopper and later, where it is installed, and
            ``torch._scaled_mm`` elsewhere; ``nvila`` the kernels of ``nvila_kernels``.

    Raises: ValueError for a name or backend that is not known, or delayed scaling by row.
    Source: NVILA, section 2.3.1.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}

    name: PrecisionName = "fp32"
    _: KW_ONLY
    scaling: Literal["current", "delayed"] = "current"
    granularity: Literal["tensor", "row"] = "tensor"
    history: int = 16
    store: bool = True
    backend: Literal["torch", "nvila"] = "torch"

    def __post_init__(self) -> None:
        if self.name not in get_args(PrecisionName):
            raise ValueError(f"no precision {self.name!r}: choose from {', '.join(get_args(PrecisionName))}")
        if self.backend not in ("torch", "nvila"):
            raise ValueError(f"no backend {self.backend!r} for fp8: choose 'torch' or 'nvila'")
        if self.scaling == "delayed" and self.granularity == "row":
            raise ValueError(
                "delayed scaling knows the largest value of a tensor, not of its rows: use 'current' by row"
            )
        if self.history < 1:
            raise ValueError(f"history {self.history} looks back at nothing: use 1 or more")

    @classmethod
    def of(cls, value: "Precision | PrecisionName") -> "Precision":
        """A precision, or the one of that name. Raises: ValueError."""
        return value if isinstance(value, Precision) else cls(value)

    def without_store(self) -> "Precision":
        """The same, with activations kept as they are."""
        return replace(self, store=False)


@contextmanager
def computing(precision: Precision | PrecisionName, kind: str = "cpu") -> Iterator[None]:
    """Run forward passes in a precision.

    ``bf16`` is torch's autocast to bfloat16. On a processor with bfloat16 instructions it makes the matrix products two
    to three times as fast; attention stays in float32 there. ``fp8`` is the same for what is not in eight bits.

    Args:
        kind: of device, ``cpu`` or ``cuda``.
    """
    if Precision.of(precision).name == "fp32":
        yield
        return
    with torch.autocast(kind, dtype=torch.bfloat16), attention():
        yield


def attention() -> AbstractContextManager[Any]:
    """How attention runs under the autocast that there is."""
    return AttentionInFloat32() if torch.is_autocast_enabled("cpu") else nullcontext()


class AttentionInFloat32(TorchFunctionMode):
    """Fused attention in float32 under autocast.

    Of torch's kernels for CPUs, the fused one takes longer for its backward pass in bfloat16 than a small model takes
    for all the rest; written out as products, attention is slower than fused in float32 as well.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        with torch.autocast("cpu", enabled=False):
            query, key, value, *rest = args
            return func(query.float(), key.float(), value.float(), *rest, **(kwargs or {}))
