"""Quantized linear layers in a checkpoint: the formats of ``nvila_kernels.formats``, a ``quantization_config`` a part.

The language model is written as AutoAWQ's ``gemm``, the vision tower as compressed-tensors' ``int-quantized``; all
formats that ``format_of`` knows are read. Embeddings, norms, the projector and every other layer are floats.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from nvila_kernels import Int4Linear, Int8Linear
from nvila_kernels.formats import AwqGemm, FormatError, IntQuantized, LayerFormat, WritableFormat, format_of
from nvila_kernels.policy import linear_layers
from nvila_kernels.quantization import Int4Codes, Int8Codes
from torch import Tensor, nn

from nvila_model.checkpoint.folder import CheckpointError
from nvila_model.checkpoint.names import published_names
from nvila_model.config import NVILAConfig
from nvila_model.nvila import NVILA

if TYPE_CHECKING:
    from nvila_model.checkpoint.layout import Tensors

Codes: TypeAlias = Int4Codes | Int8Codes
FIELD = "quantization_config"


def formats(config: NVILAConfig) -> dict[str, LayerFormat]:
    """The format of each part that has quantized layers, by our name of the part. Raises: CheckpointError."""
    found: dict[str, LayerFormat] = {}
    for part, section in (("llm", config.llm), ("vision", config.vision)):
        described = (section.model_extra or {}).get(FIELD)
        if described:
            try:
                found[part] = format_of(described)
            except FormatError as error:
                raise CheckpointError(f"{FIELD} of the {part} part: {error}") from None
    return found


def place(model: NVILA, tensors: Tensors, config: NVILAConfig, *, dtype: torch.dtype, device: torch.device) -> set[str]:
    """Put the quantized layers of a checkpoint into a model on the meta device; the names of the tensors used.

    Raises: CheckpointError for tensors that are missing, or that make a layer of another size.
    """
    used: set[str] = set()
    known = formats(config)
    for name, linear in linear_layers(model).items():
        form = known.get(name.split(".", 1)[0])
        if form is None:
            continue
        stems = [source.removesuffix(".weight") for source in published_names(f"{name}.weight")]
        if not any(f"{stem}.{form.names[0]}" in tensors for stem in stems):
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
        model.set_submodule(name, kind.from_codes(cast(Any, codes), bias).to(device))
        used.update(source for _, sources in layers for source in sources)
    return used


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


def tensors_of(model: NVILA) -> dict[str, Tensor]:
    """The quantized layers' tensors under their published names."""
    found: dict[str, Tensor] = {}
    forms = {part: form for part, (form, _) in described(model).items()}
    for name, layer in quantized_layers(model).items():
        stems = [source.removesuffix(".weight") for source in published_names(f"{name}.weight")]
        form = forms[name.split(".", 1)[0]]
        for stem, codes in zip(stems, split_rows(layer.codes(), len(stems)), strict=True):
            try:
                found |= {f"{stem}.{key}": tensor.contiguous() for key, tensor in form.write(codes).items()}
            except FormatError as error:
                raise CheckpointError(f"{name} cannot be written: {error}") from None
        if layer.bias is not None:
            found |= {f"{stem}.bias": bias for stem, bias in zip(stems, layer.bias.chunk(len(stems)), strict=True)}
    return found


def described(model: NVILA) -> dict[str, tuple[WritableFormat, dict[str, Any]]]:
    """The format of each part with quantized layers, and its ``quantization_config``.

    Raises: CheckpointError if the layers of a part do not fit one format.
    """
    parts: dict[str, list[Int4Linear | Int8Linear]] = {}
    for name, layer in quantized_layers(model).items():
        parts.setdefault(name.split(".", 1)[0], []).append(layer)
    return {part: _described(part, layers, model) for part, layers in parts.items()}


def _described(part: str, layers: list[Int4Linear | Int8Linear], model: NVILA) -> tuple[WritableFormat, dict[str, Any]]:
    skipped = tuple(sorted({name.rsplit(".", 1)[1] for name in linear_layers(getattr(model, part)) if "." in name}))
    if part == "llm" and model.llm.lm_head is not None:
        skipped = (*skipped, "lm_head")
    if all(isinstance(layer, Int8Linear) for layer in layers):
        static = {cast(Int8Linear, layer).x_scale is not None for layer in layers}
        if len(static) == 1:
            form = IntQuantized(static=static.pop())
            return form, form.config(skipped=skipped)
    if all(isinstance(layer, Int4Linear) for layer in layers):
        four = [cast(Int4Linear, layer) for layer in layers]
        groups = {layer.codes().group_size for layer in four if layer.codes().group_size != layer.in_features}
        if len(groups) <= 1:
            form = AwqGemm(group_size=groups.pop() if groups else -1)
            return form, form.config(skipped=skipped)
    raise CheckpointError(
        f"the {part} part mixes kinds of quantized layers, and a file holds one: use one scheme a part"
    )


def without_config(section: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a part's ``config.json`` that do not speak of quantization."""
    return {name: value for name, value in section.items() if name != FIELD}
