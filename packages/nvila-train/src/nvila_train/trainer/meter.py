"""How much is computed a second: positions, floating-point operations, and the share of the device's peak.

Positions are counted where they pass: those of the language model, and patches of the vision tower. Operations follow
from them, ``2 n`` for each of the ``n`` weights that a position meets in the forward pass and twice that in the
backward pass; attention's own products are left out, so the share of the peak is a lower bound.

Source of the count: Kaplan et al., "Scaling laws for neural language models" (arXiv 2001.08361), section 2.1.
"""

import resource
import sys
import time
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from nvila_train.trainer import distributed

PEAKS: Final = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "RTX 4090": 165e12, "L40S": 362e12}
"""Dense bfloat16 operations a second by a word of the device's name, from the makers' data sheets."""

GIB = 2**30


class Meter:
    """Counts while its context lasts.

    Args:
        parts: modules whose first argument is ``[n, positions, ...]`` or tiles ``[n, 3, s, s]``, by name. The first of
            them that was run gives ``tokens`` a second.
        tile: patches of a tile, for parts that are given tiles.
        device: whose peak and memory count; the CPU by default.
    """

    def __init__(self, parts: Mapping[str, nn.Module], *, tile: int = 1, device: torch.device | None = None) -> None:
        self.parts, self.tile, self.device = parts, tile, device or torch.device("cpu")
        self.positions = dict.fromkeys(parts, 0)
        self._hooks: list[Any] = []
        self._since = 0.0

    def __enter__(self) -> "Meter":
        self._hooks = [
            module.register_forward_pre_hook(partial(self._count, name)) for name, module in self.parts.items()
        ]
        self._since = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _count(self, name: str, _: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        given = arguments[0]
        self.positions[name] += given.shape[0] * (self.tile if given.ndim == 4 else given.shape[1])

    def read(self) -> dict[str, float]:
        """Rates over all processes since the last reading, and this process's peak memory in GiB."""
        seconds = max(1e-9, time.monotonic() - self._since)
        counted = distributed.sum_named({name: float(count) for name, count in self.positions.items()} | {"": 0.0})
        found: dict[str, float] = {}
        used = [name for name in self.parts if counted[name]]
        if used:
            found["tokens_per_second"] = round(counted[used[0]] / seconds, 1)
            work = sum(counted[name] * operations(self.parts[name]) for name in used) / seconds
            peak = peak_operations(self.device)
            if peak:
                found["mfu"] = round(work / peak / distributed.world(), 4)
        self.positions = dict.fromkeys(self.parts, 0)
        self._since = time.monotonic()
        return found | {"memory": round(peak_memory(self.device) / GIB, 2)}


def operations(module: nn.Module) -> int:
    """Operations for one position: forward for all weights that multiply, and twice that backward for the trained."""
    weights = [layer.weight for layer in module.modules() if isinstance(layer, nn.Linear)]
    return sum((6 if weight.requires_grad else 2) * weight.numel() for weight in weights)


def peak_operations(device: torch.device) -> float | None:
    """Of a device; None where it is not known, as on a CPU."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((peak for word, peak in PEAKS.items() if word in name), None)


def peak_memory(device: torch.device) -> int:
    """Bytes that this process held at most: of a GPU's memory, or of the computer's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
