"""Adapters in PEFT's layout, added to the weights of a model: ``W + (alpha / rank) B A``.

A folder holds ``adapter_config.json`` and ``adapter_model.safetensors``. Once it is added the model is as large and
as fast as before. LoRA and whole modules are known; what ``peft`` has beyond that is refused by name. Tensors have the
names of this package's modules, or the published ones that ``peft`` writes when it tunes the reference's model; there
queries, keys and values of the vision tower are three layers, here they are rows of one.

An adapter that would change nothing, or something else than its configuration says, is refused: whoever adds one wants
another model.

Source: LoRA (arXiv 2106.09685), section 4.1.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from nvila_model.checkpoint.names import published_names
from nvila_model.checkpoint.tensor_folder import CheckpointError, read_json

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
A, B = ".lora_A.weight", ".lora_B.weight"

NOTHING = "dummy-target-modules"
"""What ``peft`` writes where only whole modules were trained."""

UNKNOWN = (
    "use_dora",
    "fan_in_fan_out",
    "trainable_token_indices",
    "layer_replication",
    "target_parameters",
    "lora_bias",
)
"""Fields of a configuration that change what the tensors mean."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a published tensor lies in this model: a parameter, or one of the equal ``pieces`` of its rows."""

    parameter: str
    piece: int = 0
    pieces: int = 1

    def rows(self, weight: Tensor) -> slice:
        size = len(weight) // self.pieces
        return slice(self.piece * size, (self.piece + 1) * size)


def add_adapter(model: nn.Module, folder: str | Path) -> None:
    """Add an adapter to a model's weights, in place.

    Args:
        model: with plain weights; the one that was tuned, or one with the same shapes.
        folder: where the adapter's two files are.

    Raises: CheckpointError if the adapter is not whole, is of another kind, changes nothing, holds numbers that are not
        finite, or does not fit the model.
    """
    folder = Path(folder)
    config = read_json(folder / CONFIG)
    check_kind(config, folder)
    tensors = read_tensors(folder / WEIGHTS)
    check_targets(config, tensors, folder)
    published = places_of(model)
    for name, tensor in tensors.items():
        if name.endswith(B):
            continue
        layer = name.removesuffix(A)
        target = f"{layer}.weight" if name.endswith(A) else name
        place = published.get(target, Place(parameter=target))
        weight = found(model, place.parameter, target, folder)
        rows = place.rows(weight)
        if name.endswith(A):
            scale = scale_of(config, layer, rank=len(tensor), file=folder / CONFIG)
            change = scale * (tensors[layer + B].float() @ tensor.float())
            value = weight[rows].float() + fitting(change.to(weight.device), weight[rows], layer, folder)
        else:
            value = fitting(tensor.to(weight.device), weight[rows], name, folder)
        put(model, place.parameter, rows, value)


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
    """The adapter's tensors by their names in the model, each pair whole and every number finite."""
    try:
        tensors = {module_name(name): tensor for name, tensor in load_file(path).items()}
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: an adapter folder needs it") from None
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}): copy it again") from None
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors, so it changes nothing: save the adapter again")
    for name, tensor in tensors.items():
        if ".lora_embedding_" in name:
            raise CheckpointError(f"{path} has {name!r}, an adapter of an embedding: merge it with peft")
        for end, other in ((A, B), (B, A)):
            if name.endswith(end) and name.removesuffix(end) + other not in tensors:
                raise CheckpointError(
                    f"{path} has {name!r} without its {other.split('.')[1]}: the adapter is not whole, save it again"
                )
        if name.endswith((A, B)) and (tensor.ndim != 2 or 0 in tensor.shape):
            raise CheckpointError(
                f"{path}: {name!r} of shape {list(tensor.shape)} has no rank: expected two axes of at least 1"
            )
        if not tensor.isfinite().all():
            raise CheckpointError(f"{path}: {name!r} holds NaN or infinity: take a state from before training diverged")
    return tensors


def module_name(name: str) -> str:
    """What ``peft`` and the reference's wrappers put in front of a module's name, taken off."""
    return name.removeprefix(PREFIX).replace("vision_tower.vision_tower.", "vision_tower.", 1)


def places_of(model: nn.Module) -> dict[str, Place]:
    """Where each published tensor lies in a model, for the parts that have published names."""
    places: dict[str, Place] = {}
    for parameter, _ in model.named_parameters():
        try:
            names = published_names(parameter)
        except ValueError:
            continue
        pieces = len(names)
        places.update({name: Place(parameter=parameter, piece=i, pieces=pieces) for i, name in enumerate(names)})
    return places


def check_targets(config: Mapping[str, Any], tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Refuse an adapter whose file lacks what its configuration names."""
    tuned = {name.removesuffix(A) for name in tensors if name.endswith(A)}
    whole = {holder for name in tensors if not name.endswith((A, B)) for holder in holders(name)}
    for field, layers in (("target_modules", tuned), ("modules_to_save", whole)):
        for target in targets(config.get(field), folder, field):
            if not any(meets(layer, target) for layer in layers):
                raise CheckpointError(
                    f"{folder / CONFIG} names {target!r} in {field}, and {WEIGHTS} holds nothing for it: "
                    "the adapter is not whole, save it again"
                )


def holders(name: str) -> Iterator[str]:
    """The modules that hold a parameter, from the innermost out."""
    while name := name.rpartition(".")[0]:
        yield name


def targets(value: Any, folder: Path, field: str) -> Iterator[str]:
    """The layers that a field lists; a pattern as one text names them all at once, and so may be met by any."""
    if value in (None, "all-linear", NOTHING, [NOTHING]):
        return
    listed: Iterable[Any] = [value] if isinstance(value, str) else value if isinstance(value, list) else [value]
    for target in listed:
        if not isinstance(target, str):
            raise CheckpointError(f"{folder / CONFIG}: {field} holds {target!r}: expected names of layers")
        yield target


def meets(layer: str, target: str) -> bool:
    """Whether ``target`` names a layer: by its name, the end of it, or as a pattern."""
    if layer == target or layer.endswith(f".{target}"):
        return True
    try:
        return re.fullmatch(target, layer) is not None
    except (re.error, RecursionError):
        return False


def scale_of(config: Mapping[str, Any], layer: str, *, rank: int, file: Path) -> float:
    """What the product of a layer is multiplied by; the patterns of a configuration go before its own numbers.

    Raises: CheckpointError if the rank is not that of the layer's tensors, which would scale it wrongly.
    """
    stated = chosen(config.get("rank_pattern"), layer, config.get("r"), field="r", file=file)
    alpha = chosen(config.get("alpha_pattern"), layer, config.get("lora_alpha"), field="lora_alpha", file=file)
    if stated != rank:
        raise CheckpointError(
            f"{file} says rank {stated:g} for {layer!r}, its tensors have {rank}: the scale alpha / rank would be "
            "wrong, so correct r or rank_pattern"
        )
    return alpha / (stated**0.5 if config.get("use_rslora") else stated)


def chosen(pattern: Any, layer: str, default: Any, *, field: str, file: Path) -> float:
    """The first value whose key is the layer's name or its end, as ``peft`` looks them up."""
    found = default
    for key, value in (pattern if isinstance(pattern, dict) else {}).items():
        if re.match(rf"(.*\.)?({key})$", layer):
            found = value
            break
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found < float("inf"):
        raise CheckpointError(f"{file}: {field} for {layer!r} is {found!r}: expected a number above 0")
    return float(found)


def found(model: nn.Module, name: str, target: str, folder: Path) -> Tensor:
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
        raise CheckpointError(f"{folder} changes {target!r}, and {reason}")
    return weight


def fitting(tensor: Tensor, weight: Tensor, name: str, folder: Path) -> Tensor:
    if tensor.shape != weight.shape:
        raise CheckpointError(
            f"{folder}: {name!r} has shape {list(tensor.shape)}, the model's {list(weight.shape)}: "
            "use the model it was made for"
        )
    return tensor


def put(model: nn.Module, name: str, rows: slice, value: Tensor) -> None:
    """Give rows of a weight new values; the old ones may be a file mapped into memory, so they are not written to."""
    path, _, leaf = name.rpartition(".")
    old = getattr(model.get_submodule(path), leaf)
    with torch.no_grad():
        new = old.detach().clone()
        new[rows] = value.to(dtype=old.dtype, device=old.device)
    setattr(model.get_submodule(path), leaf, nn.Parameter(new, requires_grad=old.requires_grad))
