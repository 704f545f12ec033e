"""Quantize a checkpoint on disk, block by block, never holding the model.

Each block is read, shown the calibration data if there is any, quantized and let go. What a block gives is the
next one's input, so that beside one block only the hidden states of the calibration data are in memory.

The work is done in a hidden folder beside the destination, shard by shard; each shard appears whole or not at all, and
the folder is renamed at the very end. A run that was stopped goes on with the first shard that is not there, if it is
asked for the same thing.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from nvila_kernels import QuantPolicy
from nvila_kernels.cpu import give_back, optimize_
from nvila_kernels.formats import WritableFormat
from nvila_kernels.policy import W4A16, Scheme, linear_layers
from nvila_kernels.quantize import QuantReport
from torch import Tensor, nn

from nvila_model.checkpoint.assembly import assemble
from nvila_model.checkpoint.layout import Checkpoint, open_checkpoint
from nvila_model.checkpoint.names import published_names
from nvila_model.checkpoint.original import PARTS
from nvila_model.checkpoint.quantized import FIELD, formats, forms_of, kind_of_scheme, with_sums
from nvila_model.checkpoint.tensor_folder import CheckpointError, resized
from nvila_model.checkpoint.writing import write_descriptions
from nvila_model.inputs.model_inputs import ModelInputs
from nvila_model.inputs.tokenizer import Tokenizer
from nvila_model.network.fusion import Fused
from nvila_model.network.meta import meta_device
from nvila_model.network.vlm import VLM
from nvila_model.network.vocabulary import StoredEmbedding
from nvila_model.quantization.blocks import (
    BLOCKS,
    block_schemes,
    check_unpadded,
    folds_of,
    quantize_blocks,
    tiles,
    usual_policy,
    with_clipping,
)
from nvila_model.quantization.shards import (
    ORDER,
    PROGRESS,
    LayerError,
    Progress,
    Shard,
    Unit,
    cut,
    size,
    write_index,
    write_shard,
)
from nvila_model.quantization.stored_blocks import StoredBlocks, block_names, block_tensors, fill_copy

VOCABULARY = "llm.model.embed_tokens.weight"
SHARD_BYTES = 2 * 10**9
"""Of the source's tensors that go into one file of the result."""

Blocks: TypeAlias = Iterator[tuple[str, nn.Module, QuantReport | None]]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What will be written, known before a weight is read.

    Attributes:
        schemes, forms: of each layer that is quantized, by dotted name.
        configs: the ``quantization_config`` of each part, by our name of it.
        shards: the files.
        stored: the type of the source's tensors.
    """

    schemes: Mapping[str, Scheme]
    forms: Mapping[str, WritableFormat]
    configs: Mapping[str, Mapping[str, Any]]
    shards: Sequence[Shard]
    stored: torch.dtype


def quantize_checkpoint(
    source: Path,
    target: Path,
    *,
    policy: QuantPolicy | None = None,
    calibration: Callable[[VLM], Sequence[ModelInputs]] | None = None,
    shard_bytes: int = SHARD_BYTES,
    step: Callable[[int, int], object] | None = None,
) -> list[LayerError]:
    """Write a quantized copy of a checkpoint, in upstream's layout.

    Args:
        source: a folder of either layout.
        target: a folder that does not exist yet.
        policy: what becomes of each layer inside a block; by default ``usual_policy()``.
        calibration: makes typical conversations, one each, with the processor of a model that has no weights. With
            them scales are chosen as ``quantize_model`` does, without them weights are rounded to nearest.
        shard_bytes: the largest piece of the source that goes into one file, if no block is larger.
        step: called after every tensor or block with the bytes of the source that are done, and all there are.

    Returns: the error of each quantized layer.
    Raises: CheckpointError if the target exists, the source is quantized already, or a layer does not fit its format;
        ValueError for calibration data that is padded or has no pictures.
    """
    if target.exists():
        raise CheckpointError(f"{target} exists: choose another folder, or remove it first")
    found = open_checkpoint(source)
    if formats(found.config):
        raise CheckpointError(f"{source} is quantized already: start from the float checkpoint")
    model = outline(found)
    inputs = None if calibration is None else calibration(model)
    policy = policy or usual_policy()
    if inputs is not None:
        check_unpadded(inputs)
        policy = with_clipping(policy)
    plan = planned(found, model, policy, shard_bytes)
    work = target.with_name(f".{target.name}.part")
    work.mkdir(parents=True, exist_ok=True)
    request = [str(source.resolve()), {name: str(scheme) for name, scheme in plan.schemes.items()}, shard_bytes]
    progress = Progress(work, request=[*request, inputs and digest(inputs)])
    sizes = {unit.names: size(found.tensors, unit) for shard in plan.shards for unit in shard.units}
    done, total = 0, sum(sizes.values())
    for part in ORDER:
        shards = [shard for shard in plan.shards if shard.part == PARTS[part]]
        shows = part == "vision" and inputs is not None  # the language model what the quantized tower gives
        if all(map(progress.has, shards)) and not shows:
            done += sum(sizes[unit.names] for shard in shards for unit in shard.units)
            continue
        ready = {unit.block for shard in shards if progress.has(shard) for unit in shard.units if unit.block}
        blocks = quantized_blocks(part, found, model, plan, inputs, done=() if shows else ready)
        for shard in shards:
            written = progress.has(shard)
            tensors: dict[str, Tensor] = {}
            reports: list[LayerError] = []
            for unit in shard.units:
                if unit.block or not written:
                    made, errors = convert(unit, found, plan, blocks)
                    tensors |= made
                    reports += errors
                done += sizes[unit.names]
                if step and not (written and inputs is None):
                    step(done, total)
            if not written:
                write_shard(progress.path(shard), tensors)
                progress.add(shard, reports)
            tensors.clear()
            give_back()
    lines = progress.lines(plan.shards)
    finish(work, target, found, plan)
    return lines


def outline(found: Checkpoint) -> VLM:
    """The model without weights."""
    tokenizer = Tokenizer.from_folder(found.tokenizer, chat_template=found.config.chat_template)
    with meta_device():
        return assemble(found.config, tokenizer, model_type=VLM).eval()


def planned(found: Checkpoint, model: VLM, policy: QuantPolicy, shard_bytes: int) -> Plan:
    """Raises: CheckpointError for what could not be written at the end."""
    try:
        schemes = block_schemes(model, policy)
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    layers = linear_layers(model)
    for name, scheme in schemes.items():
        check(name, layers[name], scheme, found)
    described = forms_of(
        {name: kind_of_scheme(scheme, layers[name].in_features) for name, scheme in schemes.items()}, model
    )
    half = {name: scheme.accumulate == "float16" for name, scheme in schemes.items() if isinstance(scheme, W4A16)}
    described = with_sums(described, half)
    blocks = {
        block: names
        for part, place in BLOCKS.items()
        if part in described
        for block, names in block_names(model, place).items()
    }
    first = next(iter(blocks.values()))[0]
    return Plan(
        schemes=schemes,
        forms={name: form for forms, _ in described.values() for name, form in forms.items()},
        configs={part: {FIELD: fields} for part, (_, fields) in described.items()},
        shards=tuple(cut(found.tensors, blocks, shard_bytes)),
        stored=found.tensors[first].dtype,
    )


def check(name: str, layer: nn.Linear, scheme: Scheme, found: Checkpoint) -> None:
    sources = published_names(f"{name}.weight")
    for source in sources:
        if source not in found.tensors:
            raise CheckpointError(f"{source} is missing: the checkpoint is not whole")
    n, k = layer.out_features // len(sources), layer.in_features
    if isinstance(scheme, W4A16) and (n % 8 or k % (min(scheme.group_size, k) or k)):
        raise CheckpointError(
            f"{name} has {n} outputs and {k} inputs, which no file can hold in groups of {scheme.group_size or k}: "
            "choose another group size, or skip it"
        )


def digest(inputs: Sequence[ModelInputs]) -> str:
    """Tells calibration data from other data."""
    found = hashlib.sha256()
    for each in inputs:
        media = (medium.tiles for medium in (*each.images, *each.videos))
        for tensor in (*each.input_ids, *media):
            found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


@torch.no_grad()
def quantized_blocks(
    part: str,
    found: Checkpoint,
    model: VLM,
    plan: Plan,
    inputs: Sequence[ModelInputs] | None,
    *,
    done: Collection[str],
) -> Blocks:
    """The blocks of a part as ``quantize_blocks`` gives them; nothing is read before the first is asked for."""
    place = BLOCKS[part]
    chain = StoredBlocks(model, place, found.tensors, keep=part == "vision" and inputs is not None)
    forward: Callable[[Any], object] = model.hidden
    batches: Sequence[Any] | None = None
    if inputs is not None and part == "vision":
        fill_copy(cast(nn.Module, model.vision), part, found.tensors, leave=(f"{place}.",))
        forward, batches = model.vision, tiles(inputs, torch.device("cpu"))
    elif inputs is not None:
        batches = embedded(found, model, inputs, filled="vision" in plan.configs)
    folds = folds_of(model, part)
    yield from quantize_blocks(chain, plan.schemes, folds, forward, batches, done=done, stored=plan.stored)


def embedded(found: Checkpoint, model: VLM, inputs: Sequence[ModelInputs], *, filled: bool) -> list[Fused]:
    """What the language model is shown; the model then lets go of all other parts.

    Args:
        filled: whether the vision tower has its (quantized) weights already.
    """
    if filled:
        optimize_(cast(nn.Module, model.vision), phases=("prefill",))
    else:
        fill_copy(cast(nn.Module, model.vision), "vision", found.tensors)
    fill_copy(model.projector, "projector", found.tensors)
    rows = resized(found.tensors[VOCABULARY], model.llm.vocab_size)
    model.llm.embed_tokens = StoredEmbedding(rows, dtype=torch.float32)
    shown = [model.embed(each) for each in inputs]
    model.vision, model.projector = cast(Any, nn.Identity()), nn.Identity()
    give_back()
    return shown


def convert(unit: Unit, found: Checkpoint, plan: Plan, blocks: Blocks) -> tuple[dict[str, Tensor], list[LayerError]]:
    """What stands for a unit in the file, by name without the part, and what that cost."""
    if unit.block is None:
        return {name.split(".", 1)[1]: found.tensors[name].clone() for name in unit.names}, []
    try:
        name, block, report = next(blocks)
    except ValueError as error:
        raise CheckpointError(f"{unit.block}: {error}") from None
    assert name == unit.block
    if report is None:
        return {}, []
    tensors = block_tensors(block, name, plan.forms, plan.stored)
    lines = [
        LayerError(
            name=line.name, scheme=str(line.scheme), weight_error=line.weight_error, output_error=line.output_error
        )
        for line in report.layers
    ]
    return {key.split(".", 1)[1]: tensor for key, tensor in tensors.items()}, lines


def finish(work: Path, target: Path, found: Checkpoint, plan: Plan) -> None:
    """Indexes, configurations and tokenizer, then the name that makes it a checkpoint."""
    for folder in PARTS.values():
        shards = [shard for shard in plan.shards if shard.part == folder]
        if len(shards) > 1:
            write_index(work / folder, shards)
    tokenizer = Tokenizer.from_folder(found.tokenizer, chat_template=found.config.chat_template)
    write_descriptions(work, found.config, tokenizer, quantized=plan.configs)
    (work / PROGRESS).unlink()
    os.replace(work, target)
