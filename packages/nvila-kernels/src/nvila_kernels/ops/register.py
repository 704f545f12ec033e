"""How the signature of an operation becomes a ``torch.library`` op."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nvila_kernels.backends import implementation

NAMESPACE = "nvila_kernels"


def register(signature: Callable[..., Any]) -> Any:
    """Define ``nvila_kernels::<name>`` with CPU and CUDA implementations; the signature itself is the fake one."""
    name = signature.__name__

    def run(x: Tensor, *arguments: Any) -> Any:
        return implementation(name, x.device)(x, *arguments)

    schema = torch.library.infer_schema(signature, mutates_args=())  # pyright: ignore[reportUnknownMemberType]
    op: Any = torch.library.custom_op(f"{NAMESPACE}::{name}", run, mutates_args=(), device_types="cpu", schema=schema)
    op.register_kernel("cuda", run)
    op.register_fake(signature)
    return op
