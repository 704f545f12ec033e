"""What a checkpoint holds, whatever its layout: taken from a model or from a folder.

What was saved must give the same model when it is loaded. So a model is first compared with what its configuration
builds: the same parts, every tensor there, and none that would be left over. Otherwise nothing is written.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nvila_compress import Compressor
from torch import Tensor, nn

from nvila_model.checkpoint.assembly import assemble
from nvila_model.checkpoint.layout import open_checkpoint
from nvila_model.checkpoint.names import published_names, to_published
from nvila_model.checkpoint.quantized import FIELD, described, quantized_layers, tensors_of
from nvila_model.checkpoint.tensor_folder import CheckpointError
from nvila_model.config import NVILAConfig
from nvila_model.inputs.tokenizer import Tokenizer
from nvila_model.network.framing import Framing
from nvila_model.network.meta import meta_device
from nvila_model.network.projector import Projector
from nvila_model.network.vlm import VLM

RESIZABLE = ("llm.model.embed_tokens.weight", "llm.lm_head.weight")
"""Tensors with a row for each token, which are cut or grown to the tokenizer's size at loading."""

CHANGES_NOTHING = ("training", "gradient_checkpointing")
"""Attributes of a part that do not change what it computes."""


@dataclass(frozen=True, kw_only=True)
class Contents:
    """A whole checkpoint.

    Attributes:
        config: its description.
        tokenizer: its tokenizer.
        tensors: its weights by published name.
        quantization: for our name of a part with quantized layers, the fields that describe them.
    """

    config: NVILAConfig
    tokenizer: Tokenizer
    tensors: Mapping[str, Tensor]
    quantization: Mapping[str, Mapping[str, Any]]


def stored_contents(folder: Path) -> Contents:
    """What a folder of either layout holds; tensors stay in their files. Raises: CheckpointError."""
    found = open_checkpoint(folder)
    sections = {"llm": found.config.llm, "vision": found.config.vision}
    fields = {part: (section.model_extra or {}).get(FIELD) for part, section in sections.items()}
    return Contents(
        config=found.config,
        tokenizer=Tokenizer.from_folder(found.tokenizer, chat_template=found.config.chat_template),
        tensors={name: found.tensors[name] for name in found.tensors},
        quantization={part: {FIELD: described} for part, described in fields.items() if described},
    )


def contents_of(model: VLM) -> Contents:
    """What has to be written of a model. One that only answers has the weights of the folder that it came from.

    Raises: CheckpointError if it has no configuration or processor, or is not what its configuration describes.
    """
    if model.config is None or model.processor is None:
        raise CheckpointError("this model has no config or no processor: pass both to NVILA(...) before saving")
    tokenizer = model.processor.tokenizer
    with meta_device():
        described_model = assemble(model.config, tokenizer, model_type=VLM, parity=model.processor.parity)
    check_parts(model, described_model)
    if model.source is not None:
        stored = stored_contents(model.source)
        rows = {"vocab_size": stored.config.llm.vocab_size}
        config = model.config.model_copy(update={"llm": model.config.llm.model_copy(update=rows)})
        return Contents(config=config, tokenizer=tokenizer, tensors=stored.tensors, quantization=stored.quantization)
    tensors = published_tensors(model)
    check_tensors(tensors, described_model, quantized=quantized_layers(model).keys())
    rows = {"vocab_size": model.llm.vocab_size}
    return Contents(
        config=model.config.model_copy(update={"llm": model.config.llm.model_copy(update=rows)}),
        tokenizer=tokenizer,
        tensors=model.unused | tensors | tensors_of(model),
        quantization={part: {FIELD: fields} for part, (_, fields) in described(model).items()},
    )


def published_tensors(model: VLM) -> dict[str, Tensor]:
    """The parameters of a model by published name. Raises: CheckpointError for one that has none."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        try:
            tensors |= to_published(name, parameter)
        except (ValueError, KeyError):
            part = getattr(model, name.split(".", 1)[0])
            raise CheckpointError(
                f"parameter {name!r} of a {type(part).__name__} has no name in a checkpoint: "
                "only SigLIP towers, projectors and Qwen2 can be saved"
            ) from None
    return tensors


def check_parts(model: VLM, described_model: VLM) -> None:
    """Refuse a model of other parts than its configuration builds. Raises: CheckpointError."""
    networks = () if model.source is not None else ("vision", "llm")  # optimized ones look otherwise
    for part in ("tiler", "compressor", "projector", "image_framing", "video_framing", *networks):
        mine, built = getattr(model, part), getattr(described_model, part)
        kind = isinstance(mine, type(built)) if part in networks else type(mine) is type(built)
        if not kind or appearance(mine) != appearance(built):
            raise CheckpointError(
                f"the {part} of this model, {brief(mine)}, is not the one that its config describes, {brief(built)}: "
                "a checkpoint could not bring it back, so change the config too"
            )


def appearance(part: Any) -> Any:
    """What is compared of a part beside its tensors: what it was made with."""
    if isinstance(part, Framing):
        return part.start, part.end, part.separator, repr(part.pool)
    if not isinstance(part, nn.Module):
        return part
    plain = {name: value for name, value in vars(part).items() if isinstance(value, bool | int | float | str | tuple)}
    made_with = {name: value for name, value in plain.items() if not name.startswith("_")}
    for name in CHANGES_NOTHING:
        made_with.pop(name, None)
    small = isinstance(part, Compressor | Projector)
    return made_with, repr(part) if small else None


def brief(part: Any) -> str:
    """A part in a line of an error message."""
    if not isinstance(part, nn.Module) or next(part.parameters(), None) is None:
        return repr(part)
    made_with, _ = appearance(part)
    return f"{type(part).__name__}({', '.join(f'{name}={value!r}' for name, value in made_with.items())})"


def check_tensors(tensors: Mapping[str, Tensor], described_model: VLM, *, quantized: Collection[str]) -> None:
    """Refuse tensors that do not make up the model of the configuration. Raises: CheckpointError."""
    needed = dict(needed_tensors(described_model))
    packed = {
        source for name in quantized for kind in ("weight", "bias") for source in published_names(f"{name}.{kind}")
    }
    missing = [name for name in needed if name not in tensors and name not in packed]
    surplus = [name for name in tensors if name not in needed]
    if missing or surplus:
        what = f"lacks {len(missing)} of {len(needed)} tensors" if missing else f"has {len(surplus)} tensors too many"
        raise CheckpointError(
            f"this model {what}, {(missing or surplus)[0]!r} the first, and cannot be saved: it is optimized or was "
            "changed; load it with optimize=False, and merge adapters first"
        )
    for name, tensor in tensors.items():
        mine, wanted = list(tensor.shape), list(needed[name].shape)
        if mine != wanted and not (name in RESIZABLE and mine[1:] == wanted[1:]):
            raise CheckpointError(f"{name!r} has shape {mine}, the config says {wanted}: give it the config it has")


def needed_tensors(described_model: VLM) -> Iterator[tuple[str, Tensor]]:
    """Every tensor that a checkpoint of floats has to have, by published name, on the meta device."""
    for name, parameter in described_model.named_parameters():
        yield from to_published(name, parameter).items()
