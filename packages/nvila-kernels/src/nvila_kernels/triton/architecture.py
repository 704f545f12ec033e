"""What the kernels run on: the GPU's architecture, or triton's interpreter."""

from functools import cache

import torch

from nvila_kernels.backends import interpreted
from nvila_kernels.triton.configurations import AMD

INTERPRETED_ARCHITECTURE = 80
"""Whose tiles the interpreter uses, where there is no GPU to ask."""


@cache
def architecture(device: torch.device) -> int:
    """Ten times the compute capability: 89 for 8.9. An AMD GPU, whose numbers mean something else, is ``AMD``."""
    if device.type != "cuda":
        return INTERPRETED_ARCHITECTURE
    if torch.version.hip is not None:
        return AMD
    major, minor = torch.cuda.get_device_capability(device)
    return major * 10 + minor


@cache
def assembly() -> bool:
    """Whether kernels may hold PTX: on NVIDIA, not in the interpreter or on AMD."""
    return not interpreted() and torch.version.hip is None
