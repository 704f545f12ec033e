"""How one operation becomes a ``torch.library`` op."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nvila_kernels.backends import implementation

NAMESPACE = "nvila_kernels"


def register(name: str, schema: str, fake: Callable[..., Any]) -> Any:
    """Define ``nvila_kernels::name`` with CPU and CUDA implementations and a fake one.

    Args:
        name: of the op, and of the function that every backend has for it.
        schema: arguments and results in torch's schema language; the first argument is a tensor.
        fake: computes empty results of the right shapes.
    """

    def run(x: Tensor, *arguments: Any) -> Any:
        return implementation(name, x.device)(x, *arguments)

    op: Any = torch.library.custom_op(f"{NAMESPACE}::{name}", run, mutates_args=(), device_types="cpu", schema=schema)
    op.register_kernel("cuda", run)
    op.register_fake(fake)
    return op
