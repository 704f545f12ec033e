"""Number formats of the products of a training step; weights, gradients and optimizer states stay in float32."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

Precision = Literal["fp32", "bf16"]


@contextmanager
def computing(precision: Precision) -> Iterator[None]:
    """Run forward passes in a precision.

    ``bf16`` is torch's autocast to bfloat16. On a processor with bfloat16 instructions it makes the matrix products two
    to three times as fast. Attention is then written out as products: torch's fused kernel for CPUs takes longer for its
    backward pass in bfloat16 than the whole rest of a small tower.
    """
    if precision == "fp32":
        yield
        return
    with torch.autocast("cpu", dtype=torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
        yield
