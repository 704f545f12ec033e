"""Quantized models on this machine's processor."""

from typing import TYPE_CHECKING

from nvila_model.lazy import lazy_names

if TYPE_CHECKING:
    from nvila_model.cpu.openmp import wait_briefly
    from nvila_model.cpu.optimize import optimize_model

__all__ = [
    "optimize_model",
    "wait_briefly",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "openmp": "wait_briefly",
        "optimize": "optimize_model",
    },
)
