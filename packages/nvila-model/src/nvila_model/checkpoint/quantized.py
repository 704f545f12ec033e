"""Quantized linear layers in a checkpoint: the formats of ``nvila_kernels.formats``, a ``quantization_config`` a part.

A part whose layers all have 4 bits and one group size is written as AutoAWQ's ``gemm``, one of 8 bits as
compressed-tensors' ``int-quantized``, and one whose layers differ as compressed-tensors with a scheme for each kind.
All formats that ``formats_of`` knows are read. Embeddings, norms, the projector and every other layer are floats.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Literal, TypeAlias, cast

import torch
from nvila_kernels import Int4Linear, Int8Linear
from nvila_kernels.formats import (
    AwqGemm,
    FormatError,
    IntQuantized,
    LayerFormat,
    PackQuantized,
    WritableFormat,
    formats_of,
    mixed_config,
)
from nvila_kernels.pack import BLOCK, kernel_group
from nvila_kernels.policy import W4A16, Scheme, linear_layers
from nvila_kernels.quantization import Int4Codes, Int8Codes
from torch import Tensor, nn

from nvila_model.checkpoint.names import published_names
from nvila_model.checkpoint.tensor_folder import CheckpointError, Tensors
from nvila_model.config import NVILAConfig
from nvila_model.network.vlm import VLM

Codes: TypeAlias = Int4Codes | Int8Codes
Accumulate: TypeAlias = Literal["float32", "float16"]
FIELD = "quantization_config"
ACCUMULATE = "accumulate"
"""A field of it that is ours, which others ignore: ``"float16"`` where all 4-bit layers of a part sum in float16."""


def formats(config: NVILAConfig) -> dict[str, tuple[LayerFormat, ...]]:
    """The formats of each part that has quantized layers, by our name of the part. Raises: CheckpointError."""
    found: dict[str, tuple[LayerFormat, ...]] = {}
    for part, section in (("llm", config.llm), ("vision", config.vision)):
        described = (section.model_extra or {}).get(FIELD)
        if described:
            try:
                found[part] = formats_of(described)
            except FormatError as error:
                raise CheckpointError(f"{FIELD} of the {part} part: {error}") from None
    return found


def place(
    model: VLM,
    tensors: Tensors,
    config: NVILAConfig,
    *,
    dtype: torch.dtype,
    device: torch.device,
    accumulate: Accumulate | None = None,
) -> set[str]:
    """Put the quantized layers of a checkpoint into a model on the meta device; the names of the tensors used.

    Args:
        accumulate: of 4-bit layers; by default what the checkpoint says, where activations are float16.

    Raises: CheckpointError for tensors that are missing, or that make a layer of another size, and for sums that the
    model cannot make.
    """
    used: set[str] = set()
    known = formats(config)
    if accumulate == "float16" and dtype != torch.float16:
        raise CheckpointError(f"accumulate 'float16' needs float16 activations, not {dtype}: load with dtype float16")
    for name, linear in linear_layers(model).items():
        stems = stems_of(name)
        form = fitting(known.get(name.split(".", 1)[0], ()), stems, tensors)
        if form is None:
            continue
        layers = [read(stem, form, tensors) for stem in stems]
        codes = join_rows([found for found, _ in layers])
        shape = [linear.out_features, linear.in_features]
        if list(codes.codes.shape) != shape:
            raise CheckpointError(f"{stems[0]} holds a weight of {list(codes.codes.shape)}, config.json says {shape}")
        bias = None
        if linear.bias is not None:
            biases = [f"{stem}.bias" for stem in stems]
            bias = torch.cat([needed(tensors, source) for source in biases]).to(dtype)
            used.update(biases)
        kind = Int4Linear if isinstance(codes, Int4Codes) else Int8Linear
        layer = kind.from_codes(cast(Any, codes), bias).to(device)
        if isinstance(layer, Int4Linear) and dtype == torch.float16:
            layer.accumulate = getattr(torch, accumulate or stored_sums(config, name))
        model.set_submodule(name, layer)
        used.update(source for _, sources in layers for source in sources)
    if accumulate and not any(isinstance(layer, Int4Linear) for layer in model.modules()):
        raise CheckpointError(
            f"accumulate {accumulate!r} is of 4-bit layers, and this checkpoint has none: leave it out"
        )
    return used


def stored_sums(config: NVILAConfig, layer: str) -> Accumulate:
    """What the checkpoint says of the sums of a layer."""
    section = config.llm if layer.startswith("llm.") else config.vision
    return "float16" if (section.model_extra or {}).get(FIELD, {}).get(ACCUMULATE) == "float16" else "float32"


def fitting(forms: tuple[LayerFormat, ...], stems: list[str], tensors: Tensors) -> LayerFormat | None:
    """The first format whose telling tensor is there; None if the layer holds floats."""
    return next((form for form in forms if any(f"{stem}.{form.names[0]}" in tensors for stem in stems)), None)


def stems_of(name: str) -> list[str]:
    """The published layers that make up one of ours."""
    return [source.removesuffix(".weight") for source in published_names(f"{name}.weight")]


def read(stem: str, form: LayerFormat, tensors: Tensors) -> tuple[Codes, list[str]]:
    """One published layer, and the names of its tensors."""
    found = {name: needed(tensors, f"{stem}.{name}") for name in form.names}
    found |= {name: tensors[f"{stem}.{name}"] for name in form.optional if f"{stem}.{name}" in tensors}
    try:
        return form.read(found), [f"{stem}.{name}" for name in found]
    except (FormatError, ValueError) as error:
        raise CheckpointError(f"{tensors.place(f'{stem}.{form.names[0]}')}: {stem}: {error}") from None


def needed(tensors: Tensors, name: str) -> Tensor:
    if name not in tensors:
        raise CheckpointError(f"{name} is missing: the quantized checkpoint is not whole")
    return tensors[name]


def join_rows(weights: list[Codes]) -> Codes:
    """Layers that read the same input as one, such as queries, keys and values."""
    first = weights[0]
    if len(weights) == 1:
        return first
    codes, scale = torch.cat([w.codes for w in weights]), torch.cat([w.scale for w in weights])
    if isinstance(first, Int4Codes):
        zero = torch.cat([cast(Int4Codes, w).zero for w in weights])
        return replace(first, codes=codes, scale=scale, zero=zero)
    x_scales = {None if w.x_scale is None else float(w.x_scale) for w in cast("list[Int8Codes]", weights)}
    if len(x_scales) > 1:
        raise CheckpointError(
            f"layers that read one input have activation scales {sorted(map(str, x_scales))}: use one"
        )
    return replace(first, codes=codes, scale=scale)


def split_rows(weight: Codes, count: int) -> Iterator[Codes]:
    """The inverse of ``join_rows``."""
    pieces = zip(weight.codes.chunk(count), weight.scale.chunk(count), strict=True)
    if isinstance(weight, Int4Codes):
        for (codes, scale), zero in zip(pieces, weight.zero.chunk(count), strict=True):
            yield replace(weight, codes=codes, scale=scale, zero=zero)
    else:
        for codes, scale in pieces:
            yield replace(weight, codes=codes, scale=scale)


def quantized_layers(model: nn.Module) -> dict[str, Int4Linear | Int8Linear]:
    """The quantized layers of a model by dotted name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, (Int4Linear, Int8Linear))}


def tensors_of(model: VLM) -> dict[str, Tensor]:
    """The quantized layers' tensors under their published names."""
    found: dict[str, Tensor] = {}
    forms = {name: form for part, _ in described(model).values() for name, form in part.items()}
    for name, layer in quantized_layers(model).items():
        found |= layer_tensors(name, layer, forms[name])
    return found


def layer_tensors(name: str, layer: Int4Linear | Int8Linear, form: WritableFormat) -> dict[str, Tensor]:
    """One layer's tensors under their published names. Raises: CheckpointError if the format cannot hold it."""
    found: dict[str, Tensor] = {}
    stems = stems_of(name)
    for stem, codes in zip(stems, split_rows(layer.codes(), len(stems)), strict=True):
        try:
            found |= {f"{stem}.{key}": tensor.contiguous() for key, tensor in form.write(codes).items()}
        except FormatError as error:
            raise CheckpointError(f"{name} cannot be written: {error}") from None
    if layer.bias is not None:
        found |= {f"{stem}.bias": bias for stem, bias in zip(stems, layer.bias.chunk(len(stems)), strict=True)}
    return found


Forms: TypeAlias = Mapping[str, WritableFormat]
Kind: TypeAlias = PackQuantized | IntQuantized | None
"""Bits and groups of a layer; None for one so narrow that a single 4-bit group of any size holds it."""


def described(model: VLM) -> dict[str, tuple[Forms, dict[str, Any]]]:
    """For each part with quantized layers the format of each by dotted name, and the ``quantization_config``."""
    layers = quantized_layers(model)
    half = {name: layer.accumulate == torch.float16 for name, layer in layers.items() if isinstance(layer, Int4Linear)}
    return with_sums(forms_of({name: kind_of(layer) for name, layer in layers.items()}, model), half)


Described: TypeAlias = "dict[str, tuple[Forms, dict[str, Any]]]"


def with_sums(described: Described, half: Mapping[str, bool]) -> Described:
    """The same with a word on float16 sums, by layer. Raises: CheckpointError if layers of a part differ."""
    for part, (forms, fields) in described.items():
        kinds = {value for name, value in half.items() if name.startswith(f"{part}.")}
        if len(kinds) > 1:
            raise CheckpointError(
                f"4-bit layers of the {part} part sum in float16 and in float32, and a checkpoint has one for all: "
                "use one accumulate for the part"
            )
        described[part] = forms, fields | ({ACCUMULATE: "float16"} if kinds == {True} else {})
    return described


def kind_of(layer: Int4Linear | Int8Linear) -> Kind:
    if isinstance(layer, Int8Linear):
        return IntQuantized(static=layer.x_scale is not None)
    return kind_of_groups(layer.group_size, layer.in_features)


def kind_of_scheme(scheme: Scheme, in_features: int) -> Kind:
    """The same for a layer that is not quantized yet."""
    if isinstance(scheme, W4A16):
        return kind_of_groups(scheme.group_size, in_features)
    return IntQuantized(static=scheme.static)


def kind_of_groups(group_size: int, in_features: int) -> Kind:
    group = kernel_group(in_features, group_size)
    if group:
        return PackQuantized(group_size=group)
    return None if in_features <= BLOCK else PackQuantized(group_size=-1)


def forms_of(kinds: Mapping[str, Kind], model: nn.Module) -> dict[str, tuple[Forms, dict[str, Any]]]:
    """What :func:`described` gives, from the kinds of the layers that are or will be quantized."""
    found: dict[str, tuple[Forms, dict[str, Any]]] = {}
    for part in dict.fromkeys(name.split(".", 1)[0] for name in kinds):
        mine = {name: kind for name, kind in kinds.items() if name.startswith(f"{part}.")}
        floats = [name for name in linear_layers(model) if name.startswith(f"{part}.") and name not in kinds]
        skipped = [stem.split(".", 1)[1] for name in floats for stem in stems_of(name)]
        if part == "llm" and "lm_head" not in skipped:
            skipped.append("lm_head")  # others build one where it is tied, too
        found[part] = unified(mine, tuple(skipped))
    return found


def unified(kinds: Mapping[str, Kind], skipped: tuple[str, ...]) -> tuple[Forms, dict[str, Any]]:
    """AutoAWQ's layout or plain int8 where all layers of a part are alike, else compressed-tensors that says which."""
    different = {kind for kind in kinds.values() if kind is not None}
    four = [kind for kind in different if isinstance(kind, PackQuantized)]
    narrow = four[0] if len(four) == 1 else PackQuantized(group_size=-1)
    decided = {name: kind or narrow for name, kind in kinds.items()}
    if len(set(decided.values())) > 1:
        published = {stem.split(".", 1)[1]: kind for name, kind in decided.items() for stem in stems_of(name)}
        return decided, mixed_config(published, skipped=skipped)
    (kind,) = set(decided.values())
    form = AwqGemm(group_size=kind.group_size) if isinstance(kind, PackQuantized) else kind
    return dict.fromkeys(kinds, form), form.config(skipped=skipped)


def without_config(section: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a part's ``config.json`` that do not speak of quantization."""
    return {name: value for name, value in section.items() if name != FIELD}
