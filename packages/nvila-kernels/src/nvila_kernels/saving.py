"""Quantized models on disk, as compressed-tensors has them: a folder that ``transformers`` loads.

``model.safetensors`` holds the layers in the formats ``pack-quantized`` (4 bits) and ``int-quantized`` (8 bits), and
all other tensors as they are; ``config.json`` the model's own configuration, if it has one, with the
``quantization_config``.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from nvila_kernels.formats import (
    FormatError,
    IntQuantized,
    LayerFormat,
    PackQuantized,
    formats_of,
    mixed_config,
)
from nvila_kernels.modules import Int4Linear, Int8Linear
from nvila_kernels.pack import kernel_group, unpack_scale_zero
from nvila_kernels.policy import every_module, linear_layers
from nvila_kernels.quantization import Int4Codes, Int8Codes

WEIGHTS, CONFIG, FIELD = "model.safetensors", "config.json", "quantization_config"

Quantized = Int4Linear | Int8Linear
Form = PackQuantized | IntQuantized


class Configuration(Protocol):
    """What is asked of the ``config`` of a model of ``transformers``."""

    def to_dict(self) -> dict[str, Any]: ...


def save_quantized(model: nn.Module, folder: str | Path) -> None:
    """Write a model whose linear layers :func:`~nvila_kernels.quantize_` has replaced.

    ``transformers`` loads the folder of one of its models with ``compressed-tensors`` installed; any model comes back
    by :func:`load_quantized`. Tied parameters are written once. Where 4-bit layers have zero points, releases such as
    ``transformers`` 5.23 with ``compressed-tensors`` 0.20 expect another shape of them, and load the folder by
    ``quantization_config=CompressedTensorsConfig(dequantize=True)`` only; ``W4A16(symmetric=True)`` has none.

    Raises: ValueError for a model without quantized layers, layers that were optimized for a processor, or a layer
    that the format cannot hold; FileExistsError for a folder that exists. Nothing is written then.
    """
    from safetensors.torch import save_file  # pyright: ignore[reportUnknownVariableType]

    folder = Path(folder)
    if folder.exists():
        raise FileExistsError(f"{folder} exists: name a folder that does not")
    layers = quantized_layers(model)
    tensors = {name: tensor for name, layer in layers.items() for name, tensor in layer_tensors(name, layer)}
    ties = {name for group in tied_names(model) for name in group[1:]}
    inside = tuple(f"{name}." for name in layers)
    state: Mapping[str, Tensor] = model.state_dict()
    tensors |= {name: tensor for name, tensor in state.items() if not name.startswith(inside) and name not in ties}
    described = description(model) | {FIELD: quantization_config(model, layers)}
    folder.mkdir(parents=True)
    save_file({name: owned(tensor) for name, tensor in tensors.items()}, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")


def load_quantized(model: nn.Module, folder: str | Path) -> nn.Module:
    """Give a model of floats the quantized layers and all other tensors of a folder, in place; returns the model.

    Args:
        model: built as before it was quantized, with any weights or, to save memory, with parameters on the ``meta``
            device. Buffers that no file holds must have their values.
        folder: of :func:`save_quantized`, or another with one of the formats of ``nvila_kernels.formats``.

    Raises: ValueError for tensors that are missing, left over or of another shape, or a buffer that stays on ``meta``;
    the model is then unchanged, but in the last case. FileNotFoundError for a folder without weights.
    """
    folder = Path(folder)
    tensors = read_tensors(folder)
    forms = formats_of(json.loads((folder / CONFIG).read_text(encoding="utf-8"))[FIELD])
    found = dict(read_layers(model, tensors, forms))
    inside = tuple(f"{name}." for name in found)
    ties = tied_names(model)
    expected = {name: tensor for name, tensor in state_of(model).items() if not name.startswith(inside)}
    rest = {name: tensor for name, tensor in tensors.items() if not name.startswith(inside)}
    for group in ties:
        given = next((rest[name] for name in group if name in rest), None)
        rest |= {name: given for name in group if given is not None and name in expected}
    check_names(expected, rest, folder)
    for name, layer in found.items():
        model.set_submodule(name, layer)
    model.load_state_dict(rest, strict=False, assign=True)
    for first, *others in ties:
        for name in others:
            if name in rest:
                owner, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(owner), leaf, model.get_parameter(first))
    if empty := [name for name, buffer in model.named_buffers() if buffer.is_meta]:
        raise ValueError(
            f"{len(empty)} buffers stand in no file and have no values, {empty[0]} the first: put parameters alone on "
            "the meta device, as accelerate.init_empty_weights() does"
        )
    return model


def quantized_layers(model: nn.Module) -> dict[str, Quantized]:
    """The quantized layers by dotted name. Raises: ValueError if there are none, or optimized ones."""
    packed = [name for name, child in every_module(model) if type(child).__module__.startswith("nvila_kernels.cpu")]
    if packed:
        raise ValueError(f"{packed[0]} was optimized for this processor, which no file holds: save before optimize_")
    found = {name: child for name, child in every_module(model) if isinstance(child, Quantized)}
    if not found:
        raise ValueError("the model has no quantized layer: call quantize_ first, or save it as it is")
    return found


def form_of(layer: Quantized) -> Form:
    """The format of one layer."""
    if isinstance(layer, Int8Linear):
        return IntQuantized(static=layer.x_scale is not None)
    group = kernel_group(layer.in_features, layer.group_size)
    _, zero = unpack_scale_zero(layer.scale_zero, layer.scale_dtype)
    groups = -(-layer.in_features // (group or layer.in_features))
    return PackQuantized(group_size=group or -1, symmetric=bool((zero[:, :groups] == 8).all()))


def layer_tensors(name: str, layer: Quantized) -> Iterator[tuple[str, Tensor]]:
    """One layer's tensors by their names in the file. Raises: ValueError if the format cannot hold it."""
    try:
        for key, tensor in form_of(layer).write(cast(Any, layer.codes())).items():
            yield f"{name}.{key}", tensor
    except FormatError as error:
        raise ValueError(f"{name} cannot be saved: {error}") from None
    if layer.bias is not None:
        yield f"{name}.bias", layer.bias


def quantization_config(model: nn.Module, layers: Mapping[str, Quantized]) -> dict[str, Any]:
    """One scheme for ``Linear`` where all layers are alike, else one for each kind, with the names of its layers."""
    forms = {name: form_of(layer) for name, layer in layers.items()}
    floats = tuple(linear_layers(model))
    first, *others = dict.fromkeys(forms.values())
    return mixed_config(forms, skipped=floats) if others else first.config(skipped=floats)


def description(model: nn.Module) -> dict[str, Any]:
    """The configuration of a model of ``transformers``; empty for any other."""
    config = getattr(model, "config", None)
    if not hasattr(config, "to_dict"):
        return {}
    return {**cast(Configuration, config).to_dict(), "architectures": [type(model).__name__]}


def owned(tensor: Tensor) -> Tensor:
    """A tensor that shares its memory with nothing else: what safetensors writes."""
    alone = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor.detach() if alone else tensor.detach().clone(memory_format=torch.contiguous_format)


def tied_names(model: nn.Module) -> list[list[str]]:
    """The names of each parameter that has several."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [group for group in names.values() if len(group) > 1]


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return cast("dict[str, Tensor]", model.state_dict())


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder, mapped into memory. Raises: FileNotFoundError."""
    from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]

    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no .safetensors file: name a folder that save_quantized wrote")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def read_layers(
    model: nn.Module, tensors: Mapping[str, Tensor], forms: tuple[LayerFormat, ...]
) -> Iterator[tuple[str, Quantized]]:
    """The quantized layers that stand for linear layers of a model. Raises: ValueError for one of another shape."""
    for name, linear in linear_layers(model).items():
        form = next((form for form in forms if all(f"{name}.{key}" in tensors for key in form.names)), None)
        if form is None:
            continue
        names = [key for key in (*form.names, *form.optional) if f"{name}.{key}" in tensors]
        try:
            codes = form.read({key: tensors[f"{name}.{key}"] for key in names})
        except FormatError as error:
            raise ValueError(f"{name}: {error}") from None
        wanted = (linear.out_features, linear.in_features)
        if tuple(codes.codes.shape) != wanted:
            raise ValueError(f"{name} holds a weight of {tuple(codes.codes.shape)}, the model has {wanted}")
        yield name, layer_of(codes, tensors.get(f"{name}.bias")).train(linear.training)


def layer_of(codes: Int4Codes | Int8Codes, bias: Tensor | None) -> Quantized:
    return Int4Linear.from_codes(codes, bias) if isinstance(codes, Int4Codes) else Int8Linear.from_codes(codes, bias)


def check_names(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], folder: Path) -> None:
    """Raises: ValueError unless a model's tensors and a folder's are the same, in name and shape."""
    for name in [*expected, *given]:
        if name not in given or name not in expected:
            where = f"{folder} lacks" if name not in given else "the model has no place for"
            raise ValueError(f"{where} {name}: build the model as it was before it was quantized")
        if given[name].shape != expected[name].shape:
            shapes = f"{tuple(given[name].shape)}, the model has {tuple(expected[name].shape)}"
            raise ValueError(f"{name} has shape {shapes}: build the model as it was before it was quantized")
