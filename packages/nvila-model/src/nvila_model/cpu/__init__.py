"""A quantized model on the fastest kernels of this machine's processor."""

from typing import TYPE_CHECKING

from nvila_model.lazy import lazy_names

if TYPE_CHECKING:
    from nvila_model.cpu.openmp import wait_briefly
    from nvila_model.cpu.optimized_model import is_optimized, optimize

__all__ = [
    "is_optimized",
    "optimize",
    "wait_briefly",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "openmp": "wait_briefly",
        "optimized_model": "is_optimized optimize",
    },
)
