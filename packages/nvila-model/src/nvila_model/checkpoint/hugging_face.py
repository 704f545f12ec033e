"""The Hugging Face layout: one folder with ``config.json``, sharded safetensors and the tokenizer's files.

Two kinds are published, and each fixes what the original layout leaves to its configuration: ``nvila``
(Dynamic-S2 at one, two and three times the tile, 2x2 folding) and ``nvila_lite`` (1 to 12 tiles and a thumbnail, 3x3
folding). Tensor names are those of the original parts with the part in front.

Source: ``docs/parity.md`` says what was inferred; no file of a released checkpoint was at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nvila_model.checkpoint.names import to_published
from nvila_model.checkpoint.saving import preprocessor
from nvila_model.checkpoint.tensor_folder import SHARD_SIZE, CheckpointError, write_json, write_tensors
from nvila_model.config import NVILAConfig
from nvila_model.network.vlm import VLM

ARCHITECTURES = {"nvila": "NVILAForConditionalGeneration", "nvila_lite": "NVILALiteForConditionalGeneration"}
PROJECTORS = {"nvila": "mlp_downsample_2x2_fix", "nvila_lite": "mlp_downsample_3x3_fix"}


def is_hugging_face(root: Mapping[str, Any]) -> bool:
    """Whether a root ``config.json`` is of this layout."""
    return "text_config" in root and "vision_config" in root


def original_fields(root: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The same description in the fields of the original layout.

    Raises: CheckpointError for the kinds that need parts which are not here.
    """
    file, kind = folder / "config.json", root.get("model_type")
    if "max_batch_size_siglip" in root:
        raise CheckpointError(f"{file}: NVILA-8B-HD-Video is not supported: it needs a vision part that is not here")
    if kind not in ARCHITECTURES:
        raise CheckpointError(f"{file}: model_type {kind!r} is not supported: expected {' or '.join(ARCHITECTURES)}")
    tile = int(root["vision_config"]["image_size"])
    tiling: dict[str, Any] = {"image_aspect_ratio": "dynamic", "dynamic_s2": False, "min_tiles": 1, "max_tiles": 12}
    if kind == "nvila":
        scales = ",".join(str(tile * factor) for factor in (1, 2, 3))
        tiling = {"image_aspect_ratio": "dynamic_s2", "dynamic_s2": True, "s2_scales": scales, "max_tiles": 12}
    return {
        "model_type": "llava_llama",
        "llm": root["text_config"],
        "vision": root["vision_config"],
        "projector": {"mm_projector_type": PROJECTORS[kind]},
        "model_dtype": f"torch.{root.get('dtype') or root.get('torch_dtype') or 'bfloat16'}",
        **tiling,
    }


def export_hf(model: VLM, folder: str | Path, *, shard_size: str = SHARD_SIZE) -> None:
    """Write a model in the Hugging Face layout.

    Raises: CheckpointError if its tiling or projector is none of the two that this layout knows.
    """
    if model.config is None or model.processor is None:
        raise CheckpointError("this model has no config or no processor: pass both to NVILA(...) before saving")
    folder, config, tokenizer = Path(folder), model.config, model.processor.tokenizer
    root: dict[str, Any] = {
        "model_type": hugging_face_kind(config),
        "architectures": [ARCHITECTURES[hugging_face_kind(config)]],
        "text_config": {**config.llm.to_dict(), "vocab_size": model.llm.vocab_size},
        "vision_config": config.vision.to_dict(),
        "image_token_id": tokenizer.image_id,
        "video_token_id": tokenizer.video_id,
        "tie_word_embeddings": config.llm.tie_word_embeddings,
        "torch_dtype": str(model.llm.dtype).removeprefix("torch."),
    }
    tensors = {name: tensor for name, tensor in model.unused.items() if name.startswith("vision_tower.")}
    for name, parameter in model.named_parameters():
        tensors.update(to_published(name, parameter))
    write_tensors(folder, tensors, shard_size=shard_size)
    tokenizer.save(folder)
    if config.generation:
        write_json(folder / "generation_config.json", config.generation)
    write_json(folder / "preprocessor_config.json", preprocessor(config.vision.image_size))
    write_json(folder / "config.json", root)


def hugging_face_kind(config: NVILAConfig) -> str:
    """``nvila`` or ``nvila_lite``, whichever reads back as this description."""
    for kind in ARCHITECTURES:
        root = {"model_type": kind, "text_config": {}, "vision_config": {"image_size": config.vision.image_size}}
        fields = original_fields(root, Path())
        wanted = {name: getattr(config, name) for name in ("image_aspect_ratio", "min_tiles", "max_tiles")}
        same_tiling = all(fields.get(name, value) == value for name, value in wanted.items())
        same_scales = not config.dynamic_s2 or fields.get("s2_scales") == config.s2_scales
        folds = config.projector.mm_projector_type.replace("mlp_downsample_2x2_fix", "mlp_downsample")
        if same_tiling and same_scales and folds == PROJECTORS[kind].replace("_2x2_fix", ""):
            return kind
    raise CheckpointError(
        f"{config.image_aspect_ratio} with {config.projector.mm_projector_type} has no Hugging Face layout: "
        "save_pretrained writes the original one"
    )
