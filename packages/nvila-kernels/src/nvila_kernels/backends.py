"""Which implementation an operation runs on.

``reference``  plain torch, any device
``cpu``        kernels of other libraries, chosen by measurement; ``nvila_kernels.cpu.optimize_`` is for whole models
``triton``     the GPU kernels: NVIDIA compute capability 8.0 and later

Nothing here touches a GPU or imports triton before an operation asks for it.
"""

import importlib
import importlib.util
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from types import ModuleType
from typing import Any

import torch

_MODULES = {
    "reference": "nvila_kernels.reference",
    "cpu": "nvila_kernels.cpu",
    "triton": "nvila_kernels.triton",
}
_CAPABILITY = (8, 0)

_forced: ContextVar[str | None] = ContextVar("nvila_kernels_backend", default=None)


@cache
def _triton_usable() -> bool:
    if importlib.util.find_spec("triton") is None:
        return False
    if interpreted():
        return True
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= _CAPABILITY


@cache
def interpreted() -> bool:
    """Whether triton runs its kernels on the CPU (``TRITON_INTERPRET=1``)."""
    if importlib.util.find_spec("triton") is None:
        return False
    return bool(importlib.import_module("triton").knobs.runtime.interpret)


def available_backends() -> tuple[str, ...]:
    """The backends that can run on this machine, the preferred one of a GPU last."""
    return tuple(name for name in _MODULES if name != "triton" or _triton_usable())


@contextmanager
def use_backend(name: str) -> Generator[None]:
    """Run every operation inside the ``with`` block on one backend.

    Raises: ValueError if that backend is unknown or cannot run here.
    """
    if name not in available_backends():
        raise ValueError(f"backend {name!r} is not available here: use one of {', '.join(available_backends())}")
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def backend_of(device: torch.device) -> str:
    """The backend that an operation on ``device`` runs on now."""
    forced = _forced.get()
    if forced is not None:
        return forced
    return "triton" if device.type == "cuda" and _triton_usable() else "reference"


def implementation(operation: str, device: torch.device) -> Callable[..., Any]:
    """The function that carries out ``operation`` for tensors on ``device``."""
    module: ModuleType = importlib.import_module(_MODULES[backend_of(device)])
    return getattr(module, operation)
