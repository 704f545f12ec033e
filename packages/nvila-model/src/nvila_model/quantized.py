"""NVILA in few bits: the language model in 4-bit weights, the vision tower in 8 bits for both operands.

Decoding reads every weight of the language model for one token, so its weights are what must shrink. The vision
tower multiplies a thousand tokens a tile, so there the arithmetic must. Embeddings, output head, compressor and
projector stay as they are.

Source: NVILA, Table 7 (deployment).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from nvila_kernels import W4A16, W8A8, QuantPolicy
from nvila_kernels.calibrate import Fold, fold_block_, walk
from nvila_kernels.policy import linear_layers
from nvila_kernels.quantize import QuantReport, replace_
from torch import Tensor, nn

from nvila_model.inputs import ModelInputs
from nvila_model.nvila import NVILA, VISION_BATCH
from nvila_model.vision import VisionTower

SIGLIP_FOLDS = (
    Fold(source="norm1", targets=("attn.qkv",)),
    Fold(source="norm2", targets=("mlp.fc1",)),
)
"""What a block of timm's vision transformer can fold. Behind GELU nothing can."""


def qwen2_folds(head_dim: int) -> tuple[Fold, ...]:
    """What a block of Qwen2 can fold; the value heads that several query heads share keep one scale for all."""
    return (
        Fold(source="input_layernorm", targets=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        Fold(source="self_attn.v_proj", targets=("self_attn.o_proj",), head_dim=head_dim),
        Fold(source="post_attention_layernorm", targets=("mlp.gate_proj", "mlp.up_proj")),
        Fold(source="mlp.up_proj", targets=("mlp.down_proj",)),
    )


@torch.no_grad()
def quantize_model(
    model: NVILA,
    *,
    llm: Literal["w4a16"] | None = "w4a16",
    vision: Literal["w8a8"] | None = "w8a8",
    calibration: Sequence[ModelInputs] | None = None,
    group_size: int = 128,
) -> QuantReport:
    """Quantize a model in place.

    Args:
        model: in float32, float16 or bfloat16.
        llm: 4-bit weights for every linear layer of every block, or None to leave it.
        vision: 8-bit weights and activations, a scale a token, for every linear layer of every block, or None.
        calibration: a few dozen typical conversations, one each, with pictures if the vision tower is
            quantized. With them: AWQ scales and clipping for the language model, which is shown what the
            quantized tower gives, SmoothQuant for the tower, and output errors in the report. Without:
            rounding to nearest.
        group_size: input features that share a 4-bit scale; 0 for a whole row.

    Returns: what became of each layer, and which linear layers stayed.
    Raises: ValueError for an unknown scheme, a tower that is no ``VisionTower``, or calibration data that is
    padded or has no pictures.
    """
    if llm not in ("w4a16", None) or vision not in ("w8a8", None):
        raise ValueError(f"llm {llm!r} with vision {vision!r} is not known: use 'w4a16' or None, 'w8a8' or None")
    if calibration is not None:
        check_unpadded(calibration)
    parts: list[QuantReport] = []
    if vision is not None:
        tower = model.vision
        if not isinstance(tower, VisionTower):
            raise ValueError(f"the blocks of a {type(tower).__name__} are not known: pass vision=None")
        batches = None if calibration is None else tiles(calibration, model.device)
        policy = QuantPolicy((("trunk.blocks.*", W8A8()),))
        parts.append(quantize_part(tower, "trunk.blocks", policy, SIGLIP_FOLDS, tower, batches).under("vision"))
    if llm is not None:
        policy = QuantPolicy((("layers.*", W4A16(group_size=group_size, clip=calibration is not None)),))
        folds = qwen2_folds(model.llm.head_dim)

        def forward(inputs: ModelInputs) -> Tensor:
            return model.hidden(model.embed(inputs))

        parts.append(quantize_part(model.llm, "layers", policy, folds, forward, calibration).under("llm"))
    return QuantReport(layers=tuple(layer for part in parts for layer in part.layers), kept=tuple(linear_layers(model)))


def quantize_part(
    part: nn.Module,
    blocks: str,
    policy: QuantPolicy,
    folds: Sequence[Fold],
    forward: Callable[[Any], object],
    batches: Iterable[Any] | None,
) -> QuantReport:
    """Quantize one part of a model, block by block where there is calibration data."""
    schemes = policy.assign(part)
    if batches is None:
        return replace_(part, schemes)
    chain = {f"{blocks}.{name}": block for name, block in part.get_submodule(blocks).named_children()}
    reports: list[QuantReport] = []
    for name, block, observed in walk(chain, forward, batches):
        inside = {layer.removeprefix(f"{name}."): s for layer, s in schemes.items() if layer.startswith(f"{name}.")}
        seen = fold_block_(block, folds, observed, inside)
        reports.append(replace_(block, inside, observed=seen).under(name))
    return QuantReport(layers=tuple(layer for report in reports for layer in report.layers))


def tiles(calibration: Sequence[ModelInputs], device: torch.device) -> list[Tensor]:
    """All tiles of the calibration data, in batches for the vision tower."""
    found = [medium.tiles for inputs in calibration for medium in (*inputs.images, *inputs.videos)]
    if not found:
        raise ValueError(f"none of {len(calibration)} calibration inputs has a picture: add some, or pass vision=None")
    return [batch.to(device) for tiles in found for batch in tiles.split(VISION_BATCH)]


def check_unpadded(calibration: Sequence[ModelInputs]) -> None:
    if not calibration:
        raise ValueError("there is no calibration input: give at least one, or None to round to nearest")
    for index, inputs in enumerate(calibration):
        if len(inputs.input_ids) != 1:
            raise ValueError(
                f"calibration input {index} holds {len(inputs.input_ids)} conversations, whose padding would be "
                "measured too: give one each"
            )
