"""Number formats of the products of a training step; weights, gradients and optimizer states stay in float32."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

Precision = Literal["fp32", "bf16"]


@contextmanager
def computing(precision: Precision) -> Iterator[None]:
    """Run forward passes in a precision.

    ``bf16`` is torch's autocast to bfloat16. On a processor with bfloat16 instructions it makes the matrix products two
    to three times as fast; attention stays in float32.
    """
    if precision == "fp32":
        yield
        return
    with torch.autocast("cpu", dtype=torch.bfloat16), AttentionInFloat32():
        yield


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
