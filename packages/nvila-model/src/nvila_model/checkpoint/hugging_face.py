"""The Hugging Face layout: one folder with ``config.json``, sharded safetensors and the tokenizer's files.

Two kinds are published, and each fixes what the original layout leaves to its configuration: ``nvila``
(Dynamic-S2 at one, two and three times the tile, 2x2 folding) and ``nvila_lite`` (1 to 12 tiles and a thumbnail, 3x3
folding). Tensor names are those of the original parts with the part in front.

Source: ``docs/parity.md`` says what was inferred; no file of a released checkpoint was at hand.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from nvila_model.checkpoint.tensor_folder import CheckpointError
from nvila_model.config import EncoderConfig, NVILAConfig

ARCHITECTURES = {"nvila": "NVILAForConditionalGeneration", "nvila_lite": "NVILALiteForConditionalGeneration"}
PROJECTORS = {"nvila": "mlp_downsample_2x2_fix", "nvila_lite": "mlp_downsample_3x3_fix"}

FIRST_OF_PROJECTOR, LAST_OF_3X3 = "mm_projector.layers.1.weight", "mm_projector.layers.7.weight"
"""The projector of 3x3 folding has a linear layer more."""

KEPT = (
    "strip_messages",
    "num_video_frames",
    "fps",
    "video_max_tiles",
    "image_encoder",
    "video_encoder",
    "mm_vision_select_layer",
    "mm_vision_select_feature",
    "num_time_tokens",
    "time_token_format",
    "time_token_ids",
    "soft_ce_std",
)
"""Fields of the original root file that are read here too, where they are."""


def is_hugging_face(root: Mapping[str, Any]) -> bool:
    """Whether a root ``config.json`` is of this layout."""
    return "text_config" in root and "vision_config" in root


def original_fields(root: Mapping[str, Any], folder: Path, tensors: Container[str] = ()) -> dict[str, Any]:
    """The same description in the fields of the original layout; ``tensors`` are the names of the weights.

    Raises: CheckpointError for the kinds that need parts which are not here.
    """
    kind = kind_of(root, folder / "config.json", tensors)
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
        "strip_messages": kind != "nvila_lite",
        **tiling,
        **{name: root[name] for name in KEPT if name in root},
    }


def kind_of(root: Mapping[str, Any], file: Path, tensors: Container[str]) -> str:
    """``nvila`` or ``nvila_lite``: by ``architectures``, then by the projector, then by ``model_type``.

    Third parties write Lite models with ``model_type: nvila``.

    Raises: CheckpointError for other kinds.
    """
    if "max_batch_size_siglip" in root:
        raise CheckpointError(f"{file}: NVILA-8B-HD-Video is not supported: it needs a vision part that is not here")
    named = root.get("architectures")
    for kind, architecture in ARCHITECTURES.items():
        if isinstance(named, list) and architecture in named:
            return kind
    kind = root.get("model_type")
    if kind not in ARCHITECTURES:
        raise CheckpointError(f"{file}: model_type {kind!r} is not supported: expected {' or '.join(ARCHITECTURES)}")
    if FIRST_OF_PROJECTOR in tensors:
        return "nvila_lite" if LAST_OF_3X3 in tensors else "nvila"
    return kind


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


def beside(config: NVILAConfig, root: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that this layout fixes otherwise and others ignore: kept in the root so that nothing is lost."""
    again = NVILAConfig.model_validate(original_fields(root, Path()))
    return {
        name: value.to_dict() if isinstance(value, EncoderConfig) else value
        for name, value in ((name, getattr(config, name)) for name in KEPT)
        if value != getattr(again, name)
    }
