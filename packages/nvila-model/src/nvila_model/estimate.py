"""What a model takes, from its configuration alone: language-model positions and memory.

Everything is read off the parts built on the meta device, where tensors have shapes but no memory, so that an
answer for 15 billion parameters costs a second and no weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal, cast, get_args

import torch
from nvila_compress import SpatioTemporalPool
from nvila_tiling import DynamicS2, DynamicTiles, SingleTile, TilePlan, Tiler
from torch import nn

from nvila_model.checkpoint.assembly import Model, build_llm, build_processor, build_vision
from nvila_model.config import EncoderConfig, NVILAConfig
from nvila_model.inputs.model_inputs import TiledVideo
from nvila_model.inputs.tokenizer import Tokenizer
from nvila_model.network.framing import Framing
from nvila_model.network.meta import meta_device
from nvila_model.network.projector import build_projector
from nvila_model.network.vlm import VISION_BATCH, VLM
from nvila_model.presets import preset

__all__ = ["MemoryEstimate", "TokenCount", "Weights", "count_tokens", "estimate_memory", "parameters"]

Weights = Literal["float32", "bfloat16", "w4a16", "w8a8+w4a16"]

HALF = 2
"""Bytes of a bfloat16 number."""

GROUP = 128
"""Weights that share a scale and a zero point in 4-bit form."""

INT4 = 0.5 + (HALF + 0.5) / GROUP
"""Bytes of a 4-bit weight with its share of a 16-bit scale and a 4-bit zero point."""


@dataclass(frozen=True, kw_only=True)
class TokenCount:
    """Positions of the language model.

    Attributes:
        images, videos: of each image and video, with the newlines after tiles and frames.
        text: as given.
    """

    images: tuple[int, ...] = ()
    videos: tuple[int, ...] = ()
    text: int = 0

    @property
    def total(self) -> int:
        return sum(self.images) + sum(self.videos) + self.text


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes that one forward pass holds at once, without gradients.

    Attributes:
        vision, projector, llm: weights of each part.
        cache: keys and values of all positions.
        activations: the larger of what ``VISION_BATCH`` tiles take in the tower and what the whole prompt
            takes in one block of the language model. A lower bound: allocators and libraries add to it.
    """

    vision: int
    projector: int
    llm: int
    cache: int
    activations: int

    @property
    def weights(self) -> int:
        return self.vision + self.projector + self.llm

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.activations


def outline(config: NVILAConfig, *, model_type: type[Model]) -> Model:
    """The whole model on the meta device, without tokenizer: it counts, it cannot answer.

    Framing texts count as one token each, which holds for the only one in published checkpoints, a newline.
    """
    with meta_device():
        compressor, projector = build_projector(
            config.projector.mm_projector_type, channels=config.feature_channels, out=config.llm.hidden_size
        )
        vision, llm = build_vision(config), build_llm(config, rows=config.llm.vocab_size)
    processor = build_processor(config, cast(Tokenizer, None))  # plans need no tokenizer
    return model_type(
        vision=vision,
        tiler=processor.tiler,
        compressor=compressor,
        projector=projector,
        llm=llm,
        processor=processor,
        image_framing=counted(config.image_encoder),
        video_framing=counted(config.video_encoder),
        config=config,
    )


def count_tokens(
    model: VLM | NVILAConfig | str,
    *,
    images: Sequence[tuple[int, int]] = (),
    videos: Sequence[int] = (),
    frame_size: tuple[int, int] = (1280, 720),
    text: int = 0,
) -> TokenCount:
    """Positions of the language model that the media of one conversation take; no pixel is touched.

    Args:
        model: a model, a configuration, or the name of a preset.
        images: width and height of each image. Several images share the processor's tile budget.
        videos: frames of each video.
        frame_size: width and height of a frame, for models that tile frames.
        text: tokens of text, added to the total.

    >>> count_tokens("NVILA-8B", images=[(1344, 896)]).images
    (3073,)
    """
    model = outlined(model)
    processor = model.needed_processor()
    tiler = processor.tiler_for(len(images))
    newline = 1 if processor.tile_text else 0
    plans = [tiler.plan(width, height) for width, height in images]
    frame = (processor.video.tiler or untiled(processor.tiler)).plan(*frame_size)
    return TokenCount(
        images=tuple(model.image_tokens(plan) + newline * plan.tiles for plan in plans),
        videos=tuple(model.video_tokens(clip(frame, frames)) for frames in videos),
        text=text,
    )


def estimate_memory(
    model: VLM | NVILAConfig | str, *, weights: Weights = "bfloat16", tokens: int | None = None, batch: int = 1
) -> MemoryEstimate:
    """Memory to answer, in bytes; see ``MemoryEstimate`` for what is counted.

    Args:
        model: a model, a configuration, or the name of a preset.
        weights: ``w4a16`` keeps the linear layers of the language model's blocks in 4 bits (groups of 128, with
            scales and zero points) and all else in bfloat16; ``w8a8+w4a16`` also keeps the vision tower's in 8
            bits, with one float32 scale a row.
        tokens: positions of prompt and answer; by default the whole context.
        batch: conversations at once.

    Raises: ValueError for weights of another name, PresetError for a preset that is not there.
    """
    if weights not in get_args(Weights):
        raise ValueError(f"weights {weights!r} are not known: choose one of {', '.join(get_args(Weights))}")
    model = outlined(model)
    assert model.config is not None
    config = model.config.llm
    tokens = config.context_length if tokens is None else tokens
    size = 4 if weights == "float32" else HALF
    vision = cast(nn.Module, model.vision)
    positions = batch * tokens
    head_dim = config.hidden_size // config.num_attention_heads
    return MemoryEstimate(
        vision=int8_bytes(vision) if weights == "w8a8+w4a16" else plain_bytes(vision, size),
        projector=plain_bytes(model.projector, size),
        llm=int4_bytes(model.llm) if "w4a16" in weights else plain_bytes(model.llm, size),
        cache=2 * config.num_hidden_layers * config.num_key_value_heads * head_dim * positions * size,
        activations=max(vision_activations(model.config), llm_activations(model.config, positions)) * size,
    )


def parameters(module: nn.Module) -> int:
    """How many numbers a module holds."""
    return sum(parameter.numel() for parameter in module.parameters())


def plain_bytes(module: nn.Module, size: int) -> int:
    return parameters(module) * size


def int4_bytes(llm: nn.Module) -> int:
    """A language model whose blocks' matrices are in 4 bits; embedding and head stay in 16."""
    packed = sum(layer.weight.numel() for name, layer in linears(llm) if name.startswith("layers."))
    return round(packed * INT4) + (parameters(llm) - packed) * HALF


def int8_bytes(vision: nn.Module) -> int:
    """A vision tower whose blocks' matrices are in 8 bits, with one float32 scale an output row."""
    layers = [layer for name, layer in linears(vision) if name.startswith("blocks.")]
    packed = sum(layer.weight.numel() for layer in layers)
    return packed + 4 * sum(layer.out_features for layer in layers) + (parameters(vision) - packed) * HALF


def linears(module: nn.Module) -> list[tuple[str, nn.Linear]]:
    return [(name, layer) for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]


def vision_activations(config: NVILAConfig) -> int:
    """Numbers held while ``VISION_BATCH`` tiles pass the MLP of a block: residual, normed, hidden before and after."""
    vision = config.vision
    patches = (vision.image_size // vision.patch_size) ** 2
    return VISION_BATCH * patches * (2 * vision.hidden_size + 2 * vision.intermediate_size)


def llm_activations(config: NVILAConfig, positions: int) -> int:
    """Numbers held while the prompt passes the gated MLP of a block: residual, normed, gate, up and product."""
    return positions * (2 * config.llm.hidden_size + 3 * config.llm.intermediate_size)


def outlined(model: VLM | NVILAConfig | str) -> VLM:
    if isinstance(model, str):
        return outlined_preset(model)
    return model if isinstance(model, VLM) else outline(model, model_type=VLM)


@cache
def outlined_preset(name: str) -> VLM:
    """Built once: shapes take no memory, but thousands of modules take time."""
    return outline(preset(name), model_type=VLM)


def counted(encoder: EncoderConfig) -> Framing:
    """A framing with the right number of tokens and no ids."""
    start, end, separator = (
        (0,) if text else () for text in (encoder.start_tokens, encoder.end_tokens, encoder.sep_tokens)
    )
    pool = SpatioTemporalPool(encoder.pool_sizes) if encoder.pool_sizes else None
    return Framing(start=start, end=end, separator=separator, pool=pool)


def untiled(tiler: Tiler) -> Tiler:
    """How a model that tiles images this way takes a frame: as one tile."""
    match tiler:
        case DynamicS2():
            return tiler.single()
        case DynamicTiles():
            return SingleTile(tile=tiler.tile)
        case _:
            return tiler


def clip(frame: TilePlan, frames: int) -> TiledVideo:
    """A video of which only the counts are known."""
    return TiledVideo(tiles=torch.empty(0), frames=frames, timestamps=(), plan=frame)
