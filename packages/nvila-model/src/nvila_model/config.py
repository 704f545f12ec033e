"""What a checkpoint says about itself: upstream's ``config.json`` files, validated and kept.

Four files make up one description: the root one and one in each of ``llm/``, ``vision_tower/`` and
``mm_projector/``. Fields that this project does not use are kept as they are and written back.

Source of the field lists and defaults: released ``config.json`` files; see ``docs/parity.md``.
"""

from __future__ import annotations

import json
from math import ceil
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, field_validator, model_validator

__all__ = ["ConfigError", "EncoderConfig", "LLMConfig", "NVILAConfig", "ProjectorConfig", "VisionConfig"]


class ConfigError(ValueError):
    """A configuration that is broken, or that describes a model which is not supported."""


class Section(BaseModel):
    """A part of the description; unknown fields are kept."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    def to_dict(self) -> dict[str, Any]:
        """The fields as they were given, with changes; defaults that were never set stay out, but for the type."""
        kind = {"model_type": self.model_type} if "model_type" in type(self).model_fields else {}  # pyright: ignore
        return {**self.model_dump(mode="json", exclude_unset=True), **kind}


class LLMConfig(Section):
    """``llm/config.json``: Qwen2."""

    model_type: Literal["qwen2"] = "qwen2"
    vocab_size: int = Field(gt=0)
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    num_hidden_layers: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    num_key_value_heads: int = Field(gt=0)
    max_position_embeddings: int = 32768
    model_max_length: int | None = None
    rms_norm_eps: float = 1e-6
    rope_theta: float = Field(default=1e6, gt=0)
    hidden_act: Literal["silu"] = "silu"
    rope_scaling: dict[str, Any] | None = None
    tie_word_embeddings: bool = False
    use_sliding_window: bool = False

    @model_validator(mode="after")
    def supported(self) -> LLMConfig:
        if self.use_sliding_window:
            raise ValueError("use_sliding_window is true: sliding-window attention is not supported")
        if self.rope_scaling and self.rope_scaling_type not in ("linear", "default"):
            raise ValueError(f"rope_scaling {self.rope_scaling_type!r} is not supported: only 'linear' is")
        factor = (self.rope_scaling or {}).get("factor")
        if self.rope_scaling_type == "linear" and not isinstance(factor, int | float):
            raise ValueError(f"the factor of a linear rope_scaling is {factor!r}: expected a number")
        if self.num_attention_heads % self.num_key_value_heads or self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} must be a multiple of num_key_value_heads "
                f"{self.num_key_value_heads} and divide hidden_size {self.hidden_size}"
            )
        return self

    @property
    def rope_scaling_type(self) -> str:
        scaling = self.rope_scaling or {}
        return str(scaling.get("rope_type", scaling.get("type", "default")))

    @property
    def rope_factor(self) -> float:
        return float(self.rope_scaling["factor"]) if self.rope_scaling_type == "linear" and self.rope_scaling else 1.0

    def for_length(self, length: int | None) -> LLMConfig:
        """The same model for contexts of ``length`` tokens.

        Beyond ``max_position_embeddings`` rotary positions are scaled linearly by the rounded-up ratio, as the
        reference does at load.
        """
        if length is None:
            return self
        update: dict[str, Any] = {"model_max_length": length}
        if length > self.max_position_embeddings:
            update["rope_scaling"] = {
                "type": "linear",
                "factor": float(ceil(length / self.max_position_embeddings)),
            }
        return self.model_copy(update=update)

    @property
    def context_length(self) -> int:
        return self.model_max_length or self.max_position_embeddings


class VisionConfig(Section):
    """``vision_tower/config.json``: SigLIP."""

    model_type: Literal["siglip_vision_model"] = "siglip_vision_model"
    hidden_size: int = Field(gt=0)
    intermediate_size: int = Field(gt=0)
    num_hidden_layers: int = Field(gt=0)
    num_attention_heads: int = Field(gt=0)
    image_size: int = Field(gt=0)
    patch_size: int = Field(gt=0)
    layer_norm_eps: float = 1e-6
    hidden_act: Literal["gelu_pytorch_tanh"] = "gelu_pytorch_tanh"

    @model_validator(mode="after")
    def whole_heads(self) -> VisionConfig:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} must divide hidden_size {self.hidden_size}"
            )
        return self


class ProjectorConfig(Section):
    """``mm_projector/config.json``."""

    model_type: str = "v2l_projector"
    mm_projector_type: str


class EncoderConfig(Section):
    """How the tokens of an image or a video are framed, and pooled over time.

    ``target`` is a Python path in upstream's files. Only its last word is looked at; nothing is imported.
    """

    model_config = ConfigDict(extra="allow", populate_by_name=True)

    target: str = Field(default="BasicImageEncoder", alias="_target_")
    start_tokens: str | None = None
    end_tokens: str | None = "\n"
    sep_tokens: str | None = None
    pool_sizes: list[tuple[PositiveInt, PositiveInt, PositiveInt]] | None = None

    @model_validator(mode="after")
    def known(self) -> EncoderConfig:
        known = ("BasicImageEncoder", "BasicVideoEncoder", "TSPVideoEncoder")
        if self.target.rsplit(".", 1)[-1] not in known:
            raise ValueError(f"media encoder {self.target!r} is not supported: only {', '.join(known)} are")
        if self.target.endswith("TSPVideoEncoder") and not self.pool_sizes:
            raise ValueError("TSPVideoEncoder needs pool_sizes, such as [[8, 1, 1]]")
        return self

    def to_dict(self) -> dict[str, Any]:
        return self.model_dump(mode="json", exclude_unset=True, by_alias=True)


NOT_IN_ROOT = ("llm", "vision", "projector", "generation")


class NVILAConfig(Section):
    """The whole description: the root file's own fields, and each other file as one.

    ``llm``, ``vision`` and ``projector`` are the ``config.json`` of the three parts, ``generation`` the
    sampling defaults in ``llm/generation_config.json``, which are kept but not used. ``strip_messages`` is a field
    of ours: whether messages lose the blanks around them, as all layouts but Hugging Face's Lite have it.
    """

    llm: LLMConfig
    vision: VisionConfig
    projector: ProjectorConfig
    generation: dict[str, Any] = Field(default_factory=dict)

    model_type: Literal["llava_llama"] = "llava_llama"
    image_aspect_ratio: Literal["resize", "pad", "dynamic", "dynamic_s2"] = "resize"
    dynamic_s2: bool = False
    s2: bool = False
    s2_scales: str = "448,896,1344"
    s2_resize_output_to_scale_idx: int = -1
    min_tiles: int = 1
    max_tiles: int = 12
    video_max_tiles: int = Field(default=1, ge=1)
    num_video_frames: int = Field(default=8, ge=1)
    fps: float = Field(default=0.0, ge=0)
    image_encoder: EncoderConfig = Field(default_factory=EncoderConfig)
    video_encoder: EncoderConfig = Field(default_factory=lambda: EncoderConfig(_target_="BasicVideoEncoder"))
    mm_vision_select_layer: int = -2
    mm_vision_select_feature: Literal["cls_patch", "patch"] = "cls_patch"
    vision_resolution: int = -1
    chat_template: str | None = None
    strip_messages: bool = True
    model_dtype: str = Field(default="torch.bfloat16", pattern=r"^(torch\.)?(float32|bfloat16|float16)$")
    num_time_tokens: int = 0
    time_token_format: str = "<t{t}>"
    time_token_ids: list[int] = Field(default_factory=list)
    soft_ce_std: float = 1.0

    @field_validator("image_encoder", "video_encoder", mode="before")
    @classmethod
    def decoded(cls, value: Any) -> Any:
        """Later checkpoints store these as JSON strings."""
        return json.loads(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def supported(self) -> NVILAConfig:
        if self.s2 and not self.dynamic_s2:
            raise ValueError("s2 without dynamic_s2 is not supported: only Dynamic-S2 is")
        if self.vision_resolution not in (-1, self.vision.image_size):
            raise ValueError(
                f"vision_resolution {self.vision_resolution} is not supported: the tower has {self.vision.image_size}"
            )
        layers = self.vision.num_hidden_layers
        if not -layers <= self.mm_vision_select_layer <= -1:
            raise ValueError(
                f"mm_vision_select_layer {self.mm_vision_select_layer} is none of the tower's {layers} layers: "
                f"expected -{layers} to -1"
            )
        if self.dynamic_s2 and not all(scale.strip().isdigit() for scale in self.s2_scales.split(",")):
            raise ValueError(f"s2_scales {self.s2_scales!r} are not sides in pixels: expected such as '448,896,1344'")
        if self.dynamic_s2 and self.scales[0] != self.vision.image_size:
            raise ValueError(f"s2_scales {self.s2_scales!r} must begin with the tower's size {self.vision.image_size}")
        return self

    @property
    def scales(self) -> tuple[int, ...]:
        """Sides of the image at each scale in pixels, smallest first; a single one without Dynamic-S2."""
        if not self.dynamic_s2:
            return (self.vision.image_size,)
        return tuple(sorted(int(scale) for scale in self.s2_scales.split(",")))

    @property
    def feature_channels(self) -> int:
        """Channels that reach the compressor: the tower's width for each scale."""
        return self.vision.hidden_size * len(self.scales)

    def root_dict(self) -> dict[str, Any]:
        """The fields of the root ``config.json``, without the three parts."""
        fields = {key: value for key, value in self.to_dict().items() if key not in NOT_IN_ROOT}
        for name in ("image_encoder", "video_encoder"):
            if name in fields:
                fields[name] = getattr(self, name).to_dict()
        return fields
