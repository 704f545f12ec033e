"""Options of ``from_pretrained``: number formats and devices by name, and what transformers calls our options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from nvila_model.checkpoint.assembly import stored_dtype
from nvila_model.config import NVILAConfig

DTYPES = ("float32", "bfloat16", "float16")

OTHER_NAMES = {"torch_dtype": "dtype", "device_map": "device", "local_files_only": "offline"}
"""Options of transformers, and ours that do the same."""

INSTEAD = {
    "load_in_4bit": "write a quantized checkpoint with `nvila quantize` and load that",
    "load_in_8bit": "write a quantized checkpoint with `nvila quantize` and load that",
    "quantization_config": "write a quantized checkpoint with `nvila quantize` and load that",
    "use_auth_token": "use token",
    "trust_remote_code": "leave it out, since no code of a repository is ever run",
    "attn_implementation": "leave it out, since attention is torch's scaled_dot_product_attention",
    "max_memory": "use device: a model stands on one device",
}
"""Options of transformers that are refused, and what to do."""


def own_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options under our names.

    Raises: TypeError for one that is given under both names, or that is not known here.
    """
    found = dict(options)
    for name, ours in OTHER_NAMES.items():
        if name in found:
            if ours in found:
                raise TypeError(f"{name} and {ours} are the same option: give one of them")
            found[ours] = found.pop(name)
    for name in INSTEAD.keys() & found.keys():
        raise TypeError(f"{name} is not an option of from_pretrained: {INSTEAD[name]}")
    return found


def read_device(device: torch.device | str | None) -> torch.device:
    """A device by name; ``"auto"`` is a GPU where there is one, and None the CPU. Raises: ValueError for no device."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(device or "cpu")
    except (RuntimeError, TypeError):
        raise ValueError(f"device {device!r} is none: use 'auto', 'cpu', 'cuda' or 'cuda:1'") from None


def read_dtype(
    dtype: torch.dtype | str | None, config: NVILAConfig, device: torch.device, *, quantized: bool = False
) -> torch.dtype:
    """A number format by name; ``"auto"`` and None follow the checkpoint and the device.

    ``"auto"`` is the stored format; on a CPU float32 instead of float16, and instead of bfloat16 where the processor
    has no instructions for it: products of such matrices are several times slower there. Kernels of quantized layers on
    a CPU work in float32.

    Raises: ValueError for another format than float32, bfloat16 and float16.
    """
    if dtype in ("auto", None):
        stored = stored_dtype(config)
        fast = device.type != "cpu" or (stored == torch.bfloat16 and fast_bfloat16() and not quantized)
        return stored if fast else torch.float32
    known = {getattr(torch, name): name for name in DTYPES}
    found = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or found not in known:
        raise ValueError(f"dtype {dtype!r} is no number format of weights: use 'auto', {', '.join(DTYPES)}")
    return found


def fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices faster than float32 ones (AVX-512 BF16 or AMX)."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
