"""``attach`` and ``detach``: a compressor into a host, and out again; ``load_compressed``: a host saved with one."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from nvila_compress.adapters.after_projector import NAME, TokenCompression
from nvila_compress.adapters.blocks import Block, out_length
from nvila_compress.adapters.family import Family, check_compressor, find_family, find_owner
from nvila_compress.adapters.linear import CompressedLinear
from nvila_compress.adapters.processor import attach_processor, detach_processor, is_attached
from nvila_compress.adapters.saving import (
    FIELD,
    SaveWithDescription,
    WrittenConfig,
    find_file,
    is_saved_with,
    load_weights,
)
from nvila_compress.adapters.tower_attention import TowerAttention
from nvila_compress.contract import Compressor
from nvila_compress.registry import build, describe, from_description


@dataclass(frozen=True, kw_only=True)
class Attached:
    """What ``attach`` did.

    Args:
        layer: the name of the module with the compressor.
        tokens_before: image tokens of one tile without it; ``None`` where tiles vary.
        tokens_after: image tokens of one tile with it; ``None`` where tiles vary.
    """

    layer: str
    tokens_before: int | None
    tokens_after: int | None


def attach(model: nn.Module, processor: Any, compressor: Compressor | str) -> Attached:
    """Put ``compressor`` after the vision tower of ``model``, in place, and let ``processor`` count what is left.

    A fold goes in front of the first linear layer of the projector where tiles are fixed squares; that layer is
    widened so that the model starts as if it had been given the mean of each folded neighbourhood. Elsewhere, and for
    all that choose, it goes after the projector; a fold is followed by a linear layer that starts as that mean. What
    is new wants some training; a chooser has nothing to train.

    ``model.save_pretrained`` keeps the compressor: its description in ``config.json`` and ``compressor.json``, its
    weights beside the host's. ``load_compressed`` loads such a folder; so does ``attach`` with the same compressor on
    what the host's ``from_pretrained`` gave.

    Args:
        model: a ``transformers`` model of one of ``supported_models()``, such as ``LlavaForConditionalGeneration``, or
            a peft model around one.
        processor: its processor.
        compressor: any ``Compressor``, with parameters if any for the width of what it will read, or the name of one
            (``"stc-2x2"``), which is built for that width. It is moved to the model's device.

    Returns: where it is, and the tokens of one tile before and after.
    Raises: ValueError for a model that is not supported, quantized, offloaded or has a compressor already, and for a
        compressor that the host cannot give what it needs; TypeError for other objects; GridError if tokens make no
        grid. Nothing is changed then.
    """
    host = host_of(model, processor)
    family = find_family(host.config)
    name, owner = find_owner(host, family)
    if is_compressed(owner, family):
        raise ValueError(f"{type(host).__name__} has a compressor already: detach it first")
    if is_attached(processor):
        raise ValueError(f"{type(processor).__name__} counts for a compressor already: detach it first")
    tile = family.placing.tile(host, processor)
    width = host.config.get_text_config().hidden_size
    slot = f"{family.projector}.{family.layer}"
    if isinstance(compressor, str):
        front = family.in_front(build(compressor, channels=1))
        compressor = build(compressor, channels=plain_linear(owner, slot).in_features if front else width)
    if not isinstance(compressor, nn.Module) or not isinstance(compressor, Compressor):
        raise TypeError(f"{type(compressor).__name__} is no Compressor that is an nn.Module: pass one, or its name")
    check_compressor(compressor, family)
    before, after = lengths(compressor, tile)
    if family.in_front(compressor):
        linear = plain_linear(owner, slot)
        module: nn.Module = CompressedLinear(compressor, linear, grid=tile, name=slot.rpartition(".")[2])
        compressor.to(linear.weight.device)
    else:
        weight = a_weight(owner.get_submodule(family.projector), family)
        module = TokenCompression(compressor, width=width, levels=family.placing.levels(owner))
        module.linears.to(device=weight.device, dtype=weight.dtype)
        compressor.to(weight.device)
    module.train(model.training)
    if is_saved_with(host.config, compressor):
        load_weights(host.name_or_path, module, slot if isinstance(module, CompressedLinear) else NAME)
    if isinstance(module, TokenCompression):
        family.placing.place(host, owner, family, module, tile)
        owner.add_module(NAME, module)
        slot = NAME
    else:
        set_submodule(owner, slot, module)
    setattr(host.config, FIELD, describe_or_none(compressor))
    host.save_pretrained = SaveWithDescription(host, compressor)
    attach_processor(processor, family, compressor, tile)
    return Attached(layer=f"{name}.{slot}" if name else slot, tokens_before=before, tokens_after=after)


def detach(model: nn.Module, processor: Any) -> None:
    """Take the compressor out again: model and processor are as they were before ``attach``, bit for bit.

    Raises: ValueError if there is none.
    """
    host = host_of(model, processor)
    family = find_family(host.config)
    _, owner = find_owner(host, family)
    if not is_compressed(owner, family) or not is_attached(processor):
        raise ValueError(f"{type(host).__name__} or {type(processor).__name__} has no compressor: nothing to detach")
    slot = f"{family.projector}.{family.layer}"
    if NAME in owner._modules:  # pyright: ignore[reportPrivateUsage]
        remove_hooks(owner)
        delattr(owner, NAME)
    else:
        set_submodule(owner, slot, cast(CompressedLinear, owner.get_submodule(slot)).restore())
    del host.__dict__["save_pretrained"]
    delattr(host.config, FIELD)
    detach_processor(processor)


def load_compressed(folder: str | Path, *, processor: Any = None, **kwargs: Any) -> tuple[Any, Any]:
    """Load a host that was saved with a compressor.

    Args:
        folder: where ``save_pretrained`` of model and processor wrote, or its name on the hub.
        processor: if it was saved elsewhere.
        kwargs: for the host's ``from_pretrained`` (``dtype``, ``device_map``).

    Returns: the model and its processor, with the compressor attached.
    Raises: ValueError for a folder without a compressor's description, one that lacks its weights, and for a host that
        the installed transformers does not have.
    """
    import transformers

    config = json.loads(Path(find_file(folder, "config.json")).read_text())
    find_family(WrittenConfig(config))
    description = config.get(FIELD)
    if description is None:
        raise ValueError(f"{folder} has no {FIELD} in its config.json: load it with from_pretrained, then attach one")
    architecture: Any = getattr(transformers, config["architectures"][0])
    model = architecture.from_pretrained(folder, **kwargs)
    if processor is None:
        processor = cast(Any, transformers.AutoProcessor).from_pretrained(folder)
    attach(model, processor, from_description(description))
    return model, processor


def host_of(model: Any, processor: Any) -> Any:
    """The host in ``model``, which peft may have wrapped. Raises: TypeError for other objects."""
    host = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not isinstance(host, nn.Module) or not hasattr(host, "config"):
        raise TypeError(f"a {type(model).__name__} is no transformers model: pass attach(model, processor, compressor)")
    find_family(host.config)
    if not hasattr(processor, "image_processor") or not hasattr(processor, "tokenizer"):
        raise TypeError(f"a {type(processor).__name__} is no processor with an image processor and a tokenizer")
    return host


def is_compressed(owner: nn.Module, family: Family) -> bool:
    if NAME in owner._modules:  # pyright: ignore[reportPrivateUsage]
        return True
    if family.layer is None:
        return False
    try:
        return isinstance(owner.get_submodule(f"{family.projector}.{family.layer}"), CompressedLinear)
    except AttributeError:
        return False


def plain_linear(owner: nn.Module, slot: str) -> nn.Linear:
    """The layer at ``slot``, once it is sure that it can be widened.

    Raises: ValueError for another module, a quantized or an offloaded layer.
    """
    layer: Any = owner.get_submodule(slot)
    base = layer.base_layer if hasattr(layer, "lora_A") and hasattr(layer, "base_layer") else layer
    if type(base) is not nn.Linear or any(getattr(layer, "use_dora", {}).values()):
        raise ValueError(f"{slot} is a {type(layer).__name__}: attach the compressor before that change")
    check_weight(base.weight, slot)
    return layer


def a_weight(projector: nn.Module, family: Family) -> Tensor:
    """A floating-point weight of the projector, for device and dtype."""
    weights = [w for w in projector.parameters() if w.is_floating_point()]
    if not weights:
        raise ValueError(f"{family.projector} has no floating-point weight to tell device and dtype from")
    check_weight(weights[0], family.projector)
    return weights[0]


def check_weight(weight: Tensor, name: str) -> None:
    """Raises: ValueError for a weight that is offloaded or not floating-point."""
    if weight.device.type == "meta":
        raise ValueError(f"{name} is offloaded: attach before offloading, or load the model onto one device")
    if not weight.is_floating_point():
        raise ValueError(f"{name} is quantized ({weight.dtype}): attach the compressor before quantizing")


def lengths(compressor: Compressor, tile: tuple[int, int] | None) -> tuple[int | None, int | None]:
    if tile is None:
        return None, None
    block = Block(grid=tile)
    return block.length, out_length(compressor, block)


def set_submodule(owner: nn.Module, slot: str, module: nn.Module) -> None:
    parent, _, child = slot.rpartition(".")
    setattr(owner.get_submodule(parent), child, module)


def remove_hooks(owner: nn.Module) -> None:
    """Take away this package's hooks and the attributes that shadow methods of ``owner``."""
    for module in owner.modules():
        tables = (module._forward_hooks, module._forward_pre_hooks)  # pyright: ignore
        for hooks in cast(tuple[dict[int, Any], ...], tables):
            for key in [key for key, hook in hooks.items() if is_ours(hook)]:
                hook = hooks.pop(key)
                if isinstance(hook, TowerAttention):
                    hook.restore()
    for key in [key for key, value in owner.__dict__.items() if is_ours(value)]:
        del owner.__dict__[key]


def is_ours(thing: Any) -> bool:
    return not isinstance(thing, nn.Module) and isinstance(getattr(thing, "compression", None), TokenCompression)


def describe_or_none(compressor: Compressor) -> Any:
    """The description; ``None`` for a class without a name, which works but cannot be saved."""
    try:
        return describe(compressor)
    except ValueError:
        return None
