"""From a model to files in upstream's layout; loading them again gives the same model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from nvila_model.checkpoint.names import to_published
from nvila_model.checkpoint.original import GENERATION, PARTS
from nvila_model.checkpoint.quantized import FIELD, described, tensors_of, without_config
from nvila_model.checkpoint.tensor_folder import SHARD_SIZE, CheckpointError, write_json, write_tensors
from nvila_model.config import NVILAConfig
from nvila_model.inputs.tokenizer import Tokenizer
from nvila_model.network.vlm import VLM


def save(model: VLM, folder: str | Path, *, shard_size: str = SHARD_SIZE) -> None:
    """Write ``config.json``, ``llm/``, ``vision_tower/`` and ``mm_projector/``.

    Fields and tensors that were in the loaded checkpoint and are not used here are written back. Quantized layers
    are written as ``nvila_model.checkpoint.quantized`` says.

    Args:
        shard_size: the largest file; a part that is larger is split, with an index.

    Raises: CheckpointError if the model was put together by hand and has no configuration or processor.
    """
    if model.config is None or model.processor is None:
        raise CheckpointError("this model has no config or no processor: pass both to NVILA(...) before saving")
    folder = Path(folder)
    tensors = dict(model.unused)
    for name, parameter in model.named_parameters():
        tensors.update(to_published(name, parameter))
    tensors |= tensors_of(model)
    for part in PARTS.values():
        write_tensors(folder / part, part_of(tensors, part), shard_size=shard_size)
    config = model.config.model_copy(
        update={"llm": model.config.llm.model_copy(update={"vocab_size": model.llm.vocab_size})}
    )
    quantized = {part: {FIELD: fields} for part, (_, fields) in described(model).items()}
    write_descriptions(folder, config, model.processor.tokenizer, quantized=quantized)


def write_descriptions(
    folder: Path, config: NVILAConfig, tokenizer: Tokenizer, *, quantized: Mapping[str, Mapping[str, Any]]
) -> None:
    """Every file of a checkpoint but the weights; the root ``config.json`` last, since it makes the folder one.

    Args:
        quantized: for our name of a part, what its ``config.json`` says of quantization.
    """
    for part, section in (("llm", config.llm), ("vision", config.vision), ("projector", config.projector)):
        fields = {**without_config(section.to_dict()), **quantized.get(part, {})}
        write_json(folder / PARTS[part] / "config.json", fields)
    if config.generation:
        write_json(folder / GENERATION, config.generation)
    tokenizer.save(folder / "llm")
    write_json(folder / "vision_tower" / "preprocessor_config.json", preprocessor(config.vision.image_size))
    write_json(folder / "config.json", config.root_dict())


def part_of(tensors: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    prefix = part + "."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def preprocessor(size: int) -> dict[str, object]:
    """``preprocessor_config.json`` as SigLIP's image processor writes it."""
    return {
        "do_convert_rgb": None,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "SiglipImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": size, "width": size},
    }
