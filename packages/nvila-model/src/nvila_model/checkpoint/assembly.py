"""From a description to the parts: what each field of a checkpoint's configuration builds."""

from __future__ import annotations

from typing import TypeVar

import torch
from nvila_compress import SpatioTemporalPool
from nvila_tiling import DynamicS2, DynamicTiles, SingleTile, Tiler

from nvila_model.config import EncoderConfig, NVILAConfig
from nvila_model.inputs.processor import Processor, VideoSettings
from nvila_model.inputs.tokenizer import Tokenizer
from nvila_model.network.framing import Framing
from nvila_model.network.projector import build_projector
from nvila_model.network.qwen2 import Qwen2
from nvila_model.network.vision import VisionTower
from nvila_model.network.vlm import VLM
from nvila_model.parity import Parity

Model = TypeVar("Model", bound=VLM)

REFERENCE = {"resampler": "pillow", "exif": False}
"""How the reference reads pixels: Pillow's resize, no EXIF rotation."""


def assemble(
    config: NVILAConfig, tokenizer: Tokenizer, *, model_type: type[Model], parity: Parity | None = None
) -> Model:
    """The whole model with random weights, on the current default device.

    Args:
        config: sizes and kinds of all parts.
        tokenizer: gives the rows of the embedding and the ids of media and framing tokens.
        model_type: what the parts are put into.
        parity: reproduce the reference's choices and its pixels; see ``docs/parity.md``.
    """
    compressor, projector = build_projector(
        config.projector.mm_projector_type, channels=config.feature_channels, out=config.llm.hidden_size
    )
    processor = build_processor(config, tokenizer, parity=parity)
    return model_type(
        vision=build_vision(config),
        tiler=processor.tiler,
        compressor=compressor,
        projector=projector,
        llm=build_llm(config, rows=len(tokenizer)),
        processor=processor,
        image_framing=build_framing(config.image_encoder, tokenizer),
        video_framing=build_framing(config.video_encoder, tokenizer),
        config=config,
    )


def build_vision(config: NVILAConfig) -> VisionTower:
    vision = config.vision
    return VisionTower.siglip(
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        width=vision.hidden_size,
        layers=vision.num_hidden_layers,
        heads=vision.num_attention_heads,
        mlp_width=vision.intermediate_size,
        eps=vision.layer_norm_eps,
        select_layer=config.mm_vision_select_layer,
    )


def build_llm(config: NVILAConfig, *, rows: int) -> Qwen2:
    llm = config.llm
    return Qwen2(
        vocab_size=rows,
        width=llm.hidden_size,
        layers=llm.num_hidden_layers,
        heads=llm.num_attention_heads,
        kv_heads=llm.num_key_value_heads,
        mlp_width=llm.intermediate_size,
        tied=llm.tie_word_embeddings,
        eps=llm.rms_norm_eps,
        rope_theta=llm.rope_theta,
        rope_factor=llm.rope_factor,
    )


def build_framing(encoder: EncoderConfig, tokenizer: Tokenizer) -> Framing:
    start, end, separator = (
        tuple(tokenizer.encode(text)) if text else ()
        for text in (encoder.start_tokens, encoder.end_tokens, encoder.sep_tokens)
    )
    pool = SpatioTemporalPool(encoder.pool_sizes) if encoder.pool_sizes else None
    return Framing(start=start, end=end, separator=separator, pool=pool)


def build_tiler(config: NVILAConfig, *, max_tiles: int, parity: Parity | None) -> Tiler:
    pixels = REFERENCE if parity else {}
    tile = config.vision.image_size
    match config.image_aspect_ratio:
        case "dynamic_s2":
            output_scale = config.s2_resize_output_to_scale_idx
            return DynamicS2(scales=config.scales, max_tiles=max_tiles, output_scale=output_scale, **pixels)
        case "dynamic":
            return DynamicTiles(tile=tile, min_tiles=config.min_tiles, max_tiles=max_tiles, **pixels)
        case mode:
            return SingleTile(tile=tile, mode=mode, **pixels)


def build_processor(config: NVILAConfig, tokenizer: Tokenizer, *, parity: Parity | None = None) -> Processor:
    """How messages become inputs for the model that ``config`` describes."""
    frame_tiler = None
    if config.video_max_tiles > 1:
        frame_tiler = build_tiler(config, max_tiles=config.video_max_tiles, parity=parity)
    return Processor(
        tokenizer,
        build_tiler(config, max_tiles=config.max_tiles, parity=parity),
        video=VideoSettings(num_frames=config.num_video_frames, fps=config.fps, tiler=frame_tiler),
        tile_text="\n" if config.image_aspect_ratio == "dynamic" else "",
        strip_messages=config.strip_messages,
        parity=parity,
    )


def stored_dtype(config: NVILAConfig) -> torch.dtype:
    """The number format that the checkpoint asks for (``model_dtype``)."""
    return getattr(torch, config.model_dtype.removeprefix("torch."))
