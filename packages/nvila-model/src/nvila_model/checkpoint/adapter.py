"""Adapters in PEFT's layout, added to the weights of a model: ``W + (alpha / rank) B A``.

A folder holds ``adapter_config.json`` and ``adapter_model.safetensors``. Once it is added the model is as large and
as fast as before. LoRA and whole modules are known; what ``peft`` has beyond that is refused by name.

Source: LoRA (arXiv 2106.09685), section 4.1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from nvila_model.checkpoint.tensor_folder import CheckpointError, read_json

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."

UNKNOWN = (
    "use_dora",
    "fan_in_fan_out",
    "trainable_token_indices",
    "layer_replication",
    "target_parameters",
    "lora_bias",
)
"""Fields of a configuration that change what the tensors mean."""


def add_adapter(model: nn.Module, folder: str | Path) -> None:
    """Add an adapter to a model's weights, in place.

    Args:
        model: with plain weights; the one that was tuned, or one with the same shapes.
        folder: where the adapter's two files are.

    Raises: CheckpointError if the adapter is not whole, is of another kind, or does not fit the model.
    """
    folder = Path(folder)
    config = read_json(folder / CONFIG)
    check_kind(config, folder)
    tensors = read_tensors(folder / WEIGHTS)
    for name, tensor in tensors.items():
        if name.endswith(".lora_B.weight"):
            continue
        if name.endswith(".lora_A.weight"):
            layer = name.removesuffix(".lora_A.weight")
            other = tensors.get(f"{layer}.lora_B.weight")
            if other is None:
                raise CheckpointError(f"{folder / WEIGHTS} has {name!r} without its lora_B: the adapter is not whole")
            weight = found(model, f"{layer}.weight", folder)
            change = scale(config, layer) * (other.float() @ tensor.float())
            put(model, f"{layer}.weight", weight.float() + fitting(change.to(weight.device), weight, layer, folder))
        else:
            weight = found(model, name, folder)
            put(model, name, fitting(tensor.to(weight.device), weight, name, folder))


def check_kind(config: Mapping[str, Any], folder: Path) -> None:
    """Refuse what would be added wrongly."""
    kind = config.get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{folder / CONFIG} is of type {kind}: only LORA adapters can be added")
    used = [name for name in UNKNOWN if config.get(name)]
    used += ["bias"] if config.get("bias", "none") != "none" else []
    if used:
        raise CheckpointError(f"{folder / CONFIG} uses {used[0]}, which is not known here: merge it with peft")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The adapter's tensors by their names in the model."""
    try:
        return {name.removeprefix(PREFIX): tensor for name, tensor in load_file(path).items()}
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: an adapter folder needs it") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): copy it again") from None


def scale(config: Mapping[str, Any], layer: str) -> float:
    """What the product of a layer is multiplied by; the patterns of a configuration go before its own numbers."""
    rank = chosen(config.get("rank_pattern"), layer, config["r"])
    alpha = chosen(config.get("alpha_pattern"), layer, config["lora_alpha"])
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def chosen(pattern: Mapping[str, float] | None, layer: str, default: float) -> float:
    """The first value whose key is the layer's name or its end, as ``peft`` looks them up."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", layer):
            return value
    return default


def found(model: nn.Module, name: str, folder: Path) -> Tensor:
    """A weight of the model. Raises: CheckpointError if it has none of that name, or one that is quantized."""
    path, _, leaf = name.rpartition(".")
    try:
        weight = getattr(model.get_submodule(path), leaf)
    except AttributeError:
        weight = None
    if not isinstance(weight, nn.Parameter) or not weight.is_floating_point():
        quantized = "its layer is quantized: add the adapter to the float checkpoint, then quantize that"
        reason = (
            quantized
            if path in dict(model.named_modules())
            else "there is no such weight: use the model it was made for"
        )
        raise CheckpointError(f"{folder} changes {name!r}, and {reason}")
    return weight


def fitting(tensor: Tensor, weight: Tensor, name: str, folder: Path) -> Tensor:
    if tensor.shape != weight.shape:
        raise CheckpointError(
            f"{folder}: {name!r} has shape {list(tensor.shape)}, the model's {list(weight.shape)}: "
            "use the model it was made for"
        )
    return tensor


def put(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Give a weight its new value; the old one may be a file that is mapped into memory, so it is not written to."""
    path, _, leaf = name.rpartition(".")
    old = getattr(model.get_submodule(path), leaf)
    with torch.no_grad():
        new = tensor.to(dtype=old.dtype, device=old.device)
    setattr(model.get_submodule(path), leaf, nn.Parameter(new, requires_grad=old.requires_grad))
