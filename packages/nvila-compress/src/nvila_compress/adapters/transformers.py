"""Compressors in models from ``transformers``, their processors following.

Two things must change together: the linear layer that first reads the vision tower's tokens (``linear.py``
says how), and the number of image tokens that the processor writes into the prompt for each tile. A table
says where a family keeps both. The processor's own setting is changed, so that everything it does with the
count (padding, truncation, counting tokens without an image) stays right, and ``save_pretrained`` keeps it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, cast

from torch import nn

from nvila_compress.adapters.linear import CompressedLinear
from nvila_compress.contract import Compressor, resolve_grid


@dataclass(frozen=True, kw_only=True)
class Attached:
    """What ``attach`` did: the layer it replaced, and the image tokens of one tile before and after."""

    layer: str
    tokens_before: int
    tokens_after: int


class _TokenCount(Protocol):
    """Where a processor keeps the image tokens of one tile."""

    def get(self, processor: Any) -> int: ...

    def set(self, processor: Any, tokens: int) -> None: ...


@dataclass(frozen=True)
class _Attribute:
    """The count is one attribute of the processor, which some read from their image processor when loaded."""

    name: str

    def get(self, processor: Any) -> int:
        return getattr(processor, self.name)

    def set(self, processor: Any, tokens: int) -> None:
        for holder in (processor, processor.image_processor):
            if hasattr(holder, self.name):
                setattr(holder, self.name, tokens)


class _PatchesAndExtra:
    """LLaVA counts the patches of the size it crops or resizes to, plus extra tokens, less a class token.

    Fewer tokens are a negative number of extra ones.
    """

    def get(self, processor: Any) -> int:
        images = processor.image_processor
        size = images.crop_size if getattr(images, "do_center_crop", False) else images.size
        if not size or "height" not in size:
            raise ValueError(f"the processor's image size {size} varies: pass one that crops to a fixed size")
        patches = (size["height"] // processor.patch_size) * (size["width"] // processor.patch_size)
        class_token = processor.vision_feature_select_strategy == "default"
        return patches + processor.num_additional_image_tokens - class_token

    def set(self, processor: Any, tokens: int) -> None:
        processor.num_additional_image_tokens += tokens - self.get(processor)


@dataclass(frozen=True, kw_only=True)
class _Family:
    """One family of models: its first linear layer behind the vision tower, and its image-token count."""

    layer: str
    count: _TokenCount


_FAMILIES: dict[str, _Family] = {
    "llava": _Family(layer="multi_modal_projector.linear_1", count=_PatchesAndExtra()),
    "paligemma": _Family(layer="multi_modal_projector.linear", count=_Attribute("image_seq_length")),
    "internvl": _Family(layer="multi_modal_projector.linear_1", count=_Attribute("image_seq_length")),
    "idefics3": _Family(layer="connector.modality_projection.proj", count=_Attribute("image_seq_len")),
    "smolvlm": _Family(layer="connector.modality_projection.proj", count=_Attribute("image_seq_len")),
}


def supported_models() -> list[str]:
    """The ``config.model_type`` of the models that ``attach`` knows."""
    return list(_FAMILIES)


def attach(model: nn.Module, processor: Any, compressor: Compressor) -> Attached:
    """Put ``compressor`` behind the vision tower of ``model``, in place, and tell ``processor``.

    The compressor goes in front of the first linear layer behind the vision tower; that layer is widened so
    that the model starts as if it had been given the mean of each folded neighbourhood. Both then need some
    training, the new layer first. Checkpoints: attach the same compressor again, then load the state dict.

    Args:
        model: a ``transformers`` model of one of ``supported_models()``, such as
            ``LlavaForConditionalGeneration``, not quantized.
        processor: its processor, for images of a fixed size.
        compressor: any spatial ``Compressor``; those with parameters built for the width of the layer, and of
            the model's dtype and device.

    Returns: the layer's name, and the tokens of one tile before and after.
    Raises: ValueError for a model that is not supported, quantized or has a compressor already, for a
        temporal compressor, and for one built for another width; GridError if the processor's tokens do not
        make a square. Nothing is changed then.
    """
    model_type = str(getattr(getattr(model, "config", None), "model_type", type(model).__name__))
    if model_type not in _FAMILIES:
        raise ValueError(
            f"no adapter for {model_type!r} models (there is one for {', '.join(_FAMILIES)}): "
            "replace the first linear layer of its projector by CompressedLinear"
        )
    if "previous_frame" in compressor.needs:
        raise ValueError(f"{compressor} would mix different images: pass a spatial compressor")
    family = _FAMILIES[model_type]
    name, linear = _first_linear(model, family.layer)
    before = family.count.get(processor)
    after = compressor.out_count(resolve_grid(before, None))
    compressed = CompressedLinear(compressor, linear).train(model.training)
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, compressed)
    family.count.set(processor, after)
    return Attached(layer=name, tokens_before=before, tokens_after=after)


def _first_linear(model: nn.Module, layer: str) -> tuple[str, nn.Linear]:
    """The module whose name ends in ``layer``, whatever wraps the model; it must be a plain linear layer."""
    modules = cast(Iterator[tuple[str, nn.Module]], model.named_modules())
    for name, module in modules:
        if name == layer or name.endswith(f".{layer}"):
            if isinstance(module, CompressedLinear):
                raise ValueError(f"{name} has a compressor already: load the model anew to attach another")
            if type(module) is not nn.Linear:
                raise ValueError(f"{name} is a {type(module).__name__}: attach the compressor before that change")
            return name, module
    raise ValueError(f"{type(model).__name__} has no layer {layer}: pass the whole model, not a part of it")
