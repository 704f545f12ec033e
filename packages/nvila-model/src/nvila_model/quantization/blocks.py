"""NVILA in few bits: the language model in 4-bit weights, the vision tower in 8 bits for both operands.

Decoding reads every weight of the language model for one token, so its weights are what must shrink. The vision
tower multiplies a thousand tokens a tile, so there the arithmetic must. Embeddings, output head, compressor and
projector stay as they are: only layers inside the blocks of the two are quantized.

Source: NVILA, Table 7 (deployment).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, Literal, cast

import torch
from nvila_kernels import W4A16, W8A8, QuantPolicy
from nvila_kernels.calibrate import Fold, fold_block_, walk
from nvila_kernels.policy import Scheme, linear_layers
from nvila_kernels.quantize import QuantReport, float_parameters, replace_
from torch import Tensor, nn

from nvila_model.inputs.model_inputs import ModelInputs
from nvila_model.network.vision import VisionTower
from nvila_model.network.vlm import VISION_BATCH, VLM
from nvila_model.quantization.fused_blocks import fuse_

BLOCKS = {"vision": "vision.blocks", "llm": "llm.layers"}
"""Where the blocks of each part are, by our name of the part, in the order in which an image meets them."""

SIGLIP_FOLDS = (
    Fold(source="norm1", targets=("attn.qkv",)),
    Fold(source="norm2", targets=("mlp.fc1",)),
)
"""What a block of SigLIP can fold. Behind GELU nothing can."""


def qwen2_folds(head_dim: int) -> tuple[Fold, ...]:
    """What a block of Qwen2 can fold; the value heads that several query heads share keep one scale for all."""
    return (
        Fold(source="input_layernorm", targets=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        Fold(source="self_attn.v_proj", targets=("self_attn.o_proj",), head_dim=head_dim),
        Fold(source="post_attention_layernorm", targets=("mlp.gate_proj", "mlp.up_proj")),
        Fold(source="mlp.up_proj", targets=("mlp.down_proj",)),
    )


def usual_policy(
    *,
    llm: Literal["w4a16"] | None = "w4a16",
    vision: Literal["w8a8"] | None = "w8a8",
    group_size: int = 128,
    accumulate: Literal["float32", "float16"] = "float32",
) -> QuantPolicy:
    """One scheme for each part.

    Args:
        llm: 4-bit weights for every linear layer of every block, or None to leave it.
        vision: 8-bit weights and activations, a scale a token, for every linear layer of every block, or None.
        group_size: input features that share a 4-bit scale; 0 for a whole row.
        accumulate: of 4-bit products; ``"float16"`` for float16 activations only.

    Raises: ValueError for an unknown scheme.
    """
    if llm not in ("w4a16", None) or vision not in ("w8a8", None):
        raise ValueError(f"llm {llm!r} with vision {vision!r} is not known: use 'w4a16' or None, 'w8a8' or None")
    rules: list[tuple[str, Scheme | None]] = []
    rules += [(f"{BLOCKS['vision']}.*", W8A8())] if vision else []
    rules += [(f"{BLOCKS['llm']}.*", W4A16(group_size=group_size, accumulate=accumulate))] if llm else []
    return QuantPolicy(tuple(rules))


def with_clipping(policy: QuantPolicy) -> QuantPolicy:
    """The same, 4-bit ranges narrowed where calibration data says that it pays."""
    rules = (
        (glob, replace(scheme, clip=True) if isinstance(scheme, W4A16) else scheme) for glob, scheme in policy.rules
    )
    return QuantPolicy(tuple(rules))


def block_schemes(model: nn.Module, policy: QuantPolicy) -> dict[str, Scheme]:
    """The scheme of every layer that is to be quantized, by dotted name. Weights are not read.

    Raises: ValueError as ``QuantPolicy.assign``, and naming each rule that reaches only layers outside the blocks.
    """
    places = tuple(f"{place}." for place in BLOCKS.values())
    inside = {name: scheme for name, scheme in policy.assign(model).items() if name.startswith(places)}
    names = [name for name in linear_layers(model) if name.startswith(places)]
    for glob, scheme in policy.rules:
        if scheme is not None and not any(fnmatchcase(name, glob) for name in names):
            raise ValueError(
                f"rule {glob!r} reaches no layer of a block, and embeddings, head and projector stay floats: name "
                f"layers of {' or '.join(f'{place}.*' for place in BLOCKS.values())}"
            )
    return inside


@torch.no_grad()
def quantize_model(
    model: VLM,
    *,
    llm: Literal["w4a16"] | None = "w4a16",
    vision: Literal["w8a8"] | None = "w8a8",
    calibration: Sequence[ModelInputs] | None = None,
    group_size: int = 128,
    policy: QuantPolicy | None = None,
) -> QuantReport:
    """Quantize a model in place. ``checkpoint.quantize`` does the same to a model on disk that memory cannot hold.

    Args:
        model: in float32, float16 or bfloat16.
        llm, vision, group_size: of :func:`usual_policy`.
        calibration: a few dozen typical conversations, one each, with pictures if the vision tower is
            quantized. With them: AWQ scales and clipping for the language model, which is shown what the
            quantized tower gives, SmoothQuant for the tower, and output errors in the report. Without:
            rounding to nearest.
        policy: rules for single layers, in place of ``llm``, ``vision`` and ``group_size``; names are those of
            ``model.named_modules()``.

    Returns: what became of each layer, and which linear layers stayed.
    Raises: ValueError for an unknown scheme, a tower that is no ``VisionTower``, a rule without a layer, or calibration
    data that is padded or has no pictures.
    """
    policy = policy or usual_policy(llm=llm, vision=vision, group_size=group_size)
    if not isinstance(model.vision, VisionTower) and any(rule.startswith("vision") for rule, _ in policy.rules):
        raise ValueError(f"the blocks of a {type(model.vision).__name__} are not known: pass vision=None")
    if calibration is not None:
        check_unpadded(calibration)
        policy = with_clipping(policy)
    schemes = block_schemes(model, policy)
    reports: list[QuantReport] = []
    for part, place in BLOCKS.items():
        if not any(name.startswith(f"{place}.") for name in schemes):
            continue
        chain = {f"{place}.{name}": block for name, block in model.get_submodule(place).named_children()}
        forward, batches = shown(model, part, calibration)
        made = quantize_blocks(chain, schemes, folds_of(model, part), forward, batches)
        reports += [report for _, _, report in made if report is not None]
    fuse_(cast(nn.Module, model.vision))
    return QuantReport(
        layers=tuple(layer for report in reports for layer in report.layers),
        kept=tuple(linear_layers(model)),
        floats=float_parameters(model),
    )


def folds_of(model: VLM, part: str) -> tuple[Fold, ...]:
    return SIGLIP_FOLDS if part == "vision" else qwen2_folds(model.llm.head_dim)


def shown(
    model: VLM, part: str, calibration: Sequence[ModelInputs] | None
) -> tuple[Callable[[Any], object], Iterable[Any] | None]:
    """How a part of the model is run, and on what."""
    if part == "vision":
        return model.vision, None if calibration is None else tiles(calibration, model.device)
    return lambda inputs: model.hidden(model.embed(inputs)), calibration


def quantize_blocks(
    chain: Mapping[str, nn.Module],
    schemes: Mapping[str, Scheme],
    folds: Sequence[Fold],
    forward: Callable[[Any], object],
    batches: Iterable[Any] | None,
    *,
    done: Collection[str] = (),
    stored: torch.dtype | None = None,
) -> Iterator[tuple[str, nn.Module, QuantReport | None]]:
    """Each block in turn, quantized in place, and what that cost.

    Args:
        chain: blocks by dotted name, in the order in which the model runs them; looked up one at a time.
        schemes: of layers, by dotted name.
        folds: what a block can fold.
        forward: runs the model on one batch.
        batches: calibration data; None to round to nearest.
        done: blocks that are only passed through; they have no report.
        stored: the type that norms will be written in, where it is not the one they have now.
    """
    if batches is None:
        for name in chain:
            if name in done:
                yield name, nn.Identity(), None
            else:
                block = chain[name]
                yield name, block, replace_(block, inside(schemes, name)).under(name)
        return
    for name, block, observed in walk(chain, forward, batches):
        if name in done:
            yield name, block, None
            continue
        mine = inside(schemes, name)
        seen = fold_block_(block, folds, observed, mine, stored=stored)
        yield name, block, replace_(block, mine, observed=seen).under(name)


def inside(schemes: Mapping[str, Scheme], block: str) -> dict[str, Scheme]:
    """The schemes of one block's layers, by their names inside it."""
    prefix = f"{block}."
    return {name.removeprefix(prefix): scheme for name, scheme in schemes.items() if name.startswith(prefix)}


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
