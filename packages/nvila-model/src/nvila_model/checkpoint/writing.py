"""The files of a checkpoint, in the original and in the Hugging Face layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from nvila_model.checkpoint.contents import Contents
from nvila_model.checkpoint.hugging_face import ARCHITECTURES, beside, hugging_face_kind
from nvila_model.checkpoint.original import GENERATION, PARTS
from nvila_model.checkpoint.quantized import without_config
from nvila_model.checkpoint.tensor_folder import write_json, write_tensors
from nvila_model.config import NVILAConfig
from nvila_model.inputs.tokenizer import Tokenizer


def write_original(contents: Contents, folder: Path, *, shard_size: str) -> None:
    """``config.json``, ``llm/``, ``vision_tower/`` and ``mm_projector/``."""
    for part in PARTS.values():
        write_tensors(folder / part, part_of(contents.tensors, part), shard_size=shard_size)
    write_descriptions(folder, contents.config, contents.tokenizer, quantized=contents.quantization)


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


def write_hugging_face(contents: Contents, folder: Path, *, shard_size: str) -> None:
    """One folder with ``config.json``, safetensors and the tokenizer's files.

    A part with quantized layers has its ``quantization_config`` in its own section of ``config.json``.

    Raises: CheckpointError, before anything is written, if this layout cannot describe the model.
    """
    config, tokenizer = contents.config, contents.tokenizer
    sections = {
        part: {**without_config(section.to_dict()), **contents.quantization.get(part, {})}
        for part, section in (("llm", config.llm), ("vision", config.vision))
    }
    kind = hugging_face_kind(config)
    root: dict[str, Any] = {
        "model_type": kind,
        "architectures": [ARCHITECTURES[kind]],
        "text_config": sections["llm"],
        "vision_config": sections["vision"],
        "image_token_id": tokenizer.image_id,
        "video_token_id": tokenizer.video_id,
        "tie_word_embeddings": config.llm.tie_word_embeddings,
        "torch_dtype": str(contents.tensors["llm.model.norm.weight"].dtype).removeprefix("torch."),
    }
    root |= beside(config, root)
    write_tensors(folder, contents.tensors, shard_size=shard_size)
    tokenizer.save(folder)
    if config.generation:
        write_json(folder / "generation_config.json", config.generation)
    write_json(folder / "preprocessor_config.json", preprocessor(config.vision.image_size))
    write_json(folder / "config.json", root)


def part_of(tensors: Mapping[str, Tensor], part: str) -> dict[str, Tensor]:
    """The tensors of one folder, without its name."""
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
