"""How large a model is: by the tables ``[model]``, ``[vision]`` and ``[llm]`` of a recipe, or by its name."""

from typing import Annotated

from nvila_model import NVILAConfig, list_models, preset
from nvila_model.checkpoint import locate, open_checkpoint
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt


class Strict(BaseModel):
    """A table of a recipe: no unknown fields, no changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class VisionSize(Strict):
    """``[vision]``: a SigLIP tower of which every layer is used."""

    tile: PositiveInt
    patch: PositiveInt
    width: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    mlp_width: PositiveInt


class LanguageSize(Strict):
    """``[llm]``: a Qwen2 with tied embeddings."""

    vocabulary: Annotated[int, Field(ge=256)]
    width: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    kv_heads: PositiveInt
    mlp_width: PositiveInt
    context: PositiveInt
    rope_theta: PositiveFloat = 10_000.0


class ModelSize(Strict):
    """``[model]``: how the parts are put together."""

    scales: tuple[PositiveInt, ...]
    max_tiles: PositiveInt
    projector: str
    frames: PositiveInt
    pool: tuple[PositiveInt, PositiveInt, PositiveInt]


def described(model: ModelSize, vision: VisionSize, llm: LanguageSize, *, rows: int) -> NVILAConfig:
    """The description of a model of these sizes, for a tokenizer of ``rows`` ids."""
    return NVILAConfig.model_validate(
        {
            "architectures": ["LlavaLlamaModel"],
            "model_type": "llava_llama",
            "llm": {
                "architectures": ["Qwen2ForCausalLM"],
                "model_type": "qwen2",
                "vocab_size": rows,
                "hidden_size": llm.width,
                "intermediate_size": llm.mlp_width,
                "num_hidden_layers": llm.layers,
                "num_attention_heads": llm.heads,
                "num_key_value_heads": llm.kv_heads,
                "max_position_embeddings": llm.context,
                "model_max_length": llm.context,
                "rms_norm_eps": 1e-6,
                "rope_theta": llm.rope_theta,
                "tie_word_embeddings": True,
                "hidden_act": "silu",
            },
            "vision": {
                "architectures": ["SiglipVisionModel"],
                "model_type": "siglip_vision_model",
                "hidden_size": vision.width,
                "intermediate_size": vision.mlp_width,
                "num_hidden_layers": vision.layers,
                "num_attention_heads": vision.heads,
                "image_size": vision.tile,
                "patch_size": vision.patch,
                "layer_norm_eps": 1e-6,
                "hidden_act": "gelu_pytorch_tanh",
                "num_channels": 3,
                "vision_use_head": False,
            },
            "projector": {
                "architectures": ["MultimodalProjector"],
                "model_type": "v2l_projector",
                "mm_projector_type": model.projector,
            },
            "hidden_size": llm.width,
            "mm_hidden_size": vision.width * len(model.scales),
            "image_aspect_ratio": "dynamic_s2",
            "dynamic_s2": True,
            "s2_scales": ",".join(str(scale) for scale in model.scales),
            "s2_max_split_size": model.scales[0],
            "s2_resize_output_to_scale_idx": -1,
            "min_tiles": 1,
            "max_tiles": model.max_tiles,
            "num_video_frames": model.frames,
            "video_encoder": {
                "_target_": "llava.model.encoders.TSPVideoEncoder",
                "pool_sizes": [model.pool],
            },
            "mm_vision_select_layer": -1,
            "mm_vision_select_feature": "cls_patch",
            "model_dtype": "torch.float16",
        }
    )


def description(name: str) -> NVILAConfig:
    """The configuration of a preset or of a checkpoint."""
    known = name.rpartition("/")[2]
    return preset(known) if known in list_models() else open_checkpoint(locate(name), None).config
