"""Quantize a checkpoint on disk by rounding to nearest, tensor by tensor, never holding the model.

The work is done in a hidden folder beside the destination, shard by shard; each shard appears whole or not at all, and
the folder is renamed at the very end. A run that was stopped goes on with the first shard that is not there, if it is
asked for the same thing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from nvila_kernels import W4A16, W8A8, QuantPolicy
from nvila_kernels.formats import AwqGemm, FormatError, IntQuantized, WritableFormat
from nvila_kernels.policy import Scheme, linear_layers
from nvila_kernels.quantization import Int4Codes, Int8Codes, dequantize_int4, quantize_int4, quantize_int8
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from nvila_model.assemble import assemble
from nvila_model.checkpoint.folder import INDEX, ONE_FILE, CheckpointError, write_json
from nvila_model.checkpoint.layout import Checkpoint, Tensors, open_checkpoint
from nvila_model.checkpoint.names import published_names
from nvila_model.checkpoint.original import PARTS
from nvila_model.checkpoint.quantized import FIELD, formats, join_rows
from nvila_model.checkpoint.save import write_descriptions
from nvila_model.tokenizer import Tokenizer

SHARD_BYTES = 2 * 10**9
"""Of the source's tensors that go into one file of the result."""
ROWS = 4096
"""Rows of a weight that are held as floats at a time."""
PROGRESS = "progress.json"


@dataclass(frozen=True, kw_only=True)
class LayerError:
    """What became of one published layer.

    Attributes:
        name: published, with the part in front.
        scheme: what it was quantized to.
        error: ``|W - W'| / |W|``, Frobenius norms.
    """

    name: str
    scheme: str
    error: float


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of the result: its part's folder, its name, and the source's tensors that go into it."""

    part: str
    file: str
    names: tuple[str, ...]


def quantize_checkpoint(
    source: Path,
    target: Path,
    *,
    llm: Literal["w4a16"] | None = "w4a16",
    vision: Literal["w8a8"] | None = "w8a8",
    group_size: int = 128,
    shard_bytes: int = SHARD_BYTES,
    step: Callable[[int, int], object] | None = None,
) -> list[LayerError]:
    """Write a quantized copy of a checkpoint, in upstream's layout.

    Args:
        source: a folder of either layout.
        target: a folder that does not exist yet.
        llm: 4-bit weights for every linear layer of every block, or None to leave it.
        vision: 8-bit weights and activations for every linear layer of every block, or None.
        group_size: input features that share a scale in the language model.
        shard_bytes: the largest piece of the source that goes into one file.
        step: told after every tensor how many bytes of the source are done, and how many there are.

    Returns: the error of each quantized layer.
    Raises: CheckpointError if the target exists, the source is quantized already, or a layer does not fit its format.
    """
    if target.exists():
        raise CheckpointError(f"{target} exists: choose another folder, or remove it first")
    found = open_checkpoint(source)
    if formats(found.config):
        raise CheckpointError(f"{source} is quantized already: start from the float checkpoint")
    schemes = schemes_of(found, llm=llm, vision=vision, group_size=group_size)
    check(found.tensors, schemes)
    shards = list(cut(found.tensors, shard_bytes))
    work = target.with_name(f".{target.name}.part")
    work.mkdir(parents=True, exist_ok=True)
    progress = Progress(work, asked=[str(source.resolve()), llm, vision, group_size, shard_bytes])
    total = sum(size(found.tensors, name) for shard in shards for name in shard.names)
    done = 0
    for shard in shards:
        path = work / shard.part / shard.file
        if not progress.has(path):
            ready, lines = {}, []
            for name in shard.names:
                tensors, line = convert(name, read_alone(found.tensors, name), schemes.get(name))
                ready |= tensors
                lines += [line] if line else []
                done += size(found.tensors, name)
                if step:
                    step(done, total)
            write_shard(path, ready)
            progress.add(path, lines)
        else:
            done += sum(size(found.tensors, name) for name in shard.names)
    finish(work, target, found, shards, schemes)
    return progress.lines


def schemes_of(found: Checkpoint, *, llm: str | None, vision: str | None, group_size: int) -> dict[str, Scheme]:
    """The scheme of each published weight that is to be quantized."""
    tokenizer = Tokenizer.from_folder(found.tokenizer, chat_template=found.config.chat_template)
    with torch.device("meta"):
        model = assemble(found.config, tokenizer)
    rules: list[tuple[str, Scheme | None]] = []
    rules += [("llm.layers.*", W4A16(group_size=group_size))] if llm else []
    rules += [("vision.trunk.blocks.*", W8A8())] if vision else []
    try:
        chosen = QuantPolicy(tuple(rules)).assign(model)
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    assert set(chosen) <= set(linear_layers(model))
    return {source: scheme for name, scheme in chosen.items() for source in published_names(f"{name}.weight")}


def check(tensors: Tensors, schemes: Mapping[str, Scheme]) -> None:
    """Refuse before anything is written what could not be written at the end."""
    for name, scheme in schemes.items():
        if name not in tensors:
            raise CheckpointError(f"{name} is missing: the checkpoint is not whole")
        n, k = tensors.shape(name)
        group = getattr(scheme, "group_size", 0) or k
        if isinstance(scheme, W4A16) and (n % 8 or k % min(group, k)):
            raise CheckpointError(
                f"{name} has {n} outputs and {k} inputs, which AutoAWQ's layout cannot hold in groups of {group}: "
                "choose another --group"
            )


def cut(tensors: Tensors, most: int) -> Iterator[Shard]:
    """The tensors of each part in shards of at most ``most`` bytes; a larger tensor has one to itself."""
    for folder in PARTS.values():
        groups: list[list[str]] = []
        room = 0
        for name in sorted(name for name in tensors if name.startswith(f"{folder}.")):
            room -= size(tensors, name)
            if not groups or room < 0:
                groups.append([])
                room = most - size(tensors, name)
            groups[-1].append(name)
        for number, names in enumerate(groups, start=1):
            file = ONE_FILE if len(groups) == 1 else f"model-{number:05}-of-{len(groups):05}.safetensors"
            yield Shard(part=folder, file=file, names=tuple(names))


def size(tensors: Tensors, name: str) -> int:
    """About how many bytes a tensor takes; 16-bit numbers are assumed."""
    return 2 * int(torch.Size(tensors.shape(name)).numel())


def read_alone(tensors: Tensors, name: str) -> Tensor:
    """A tensor from a file that is opened for it alone, so that no mapped page outlives it."""
    with safe_open(tensors.place(name), framework="pt") as file:
        names = set(file.keys())
        return file.get_tensor(name if name in names else name.split(".", 1)[1])


def convert(name: str, tensor: Tensor, scheme: Scheme | None) -> tuple[dict[str, Tensor], LayerError | None]:
    """The tensors that stand for one of the source, by name without the part, and what that cost."""
    inside = name.split(".", 1)[1]
    if scheme is None:
        return {inside: tensor.clone()}, None
    if not bool(torch.isfinite(tensor).all()):
        raise CheckpointError(f"{name} holds values that are not finite, which no scale can represent: repair it")
    pieces: list[Int4Codes | Int8Codes] = []
    wrong = norm = 0.0
    for rows in tensor.split(ROWS):
        rows = rows.float()
        if isinstance(scheme, W4A16):
            codes = quantize_int4(rows, group_size=scheme.group_size)
            back = dequantize_int4(codes)
        else:
            values, scale = quantize_int8(rows)
            codes = Int8Codes(codes=values, scale=scale)
            back = values * scale[:, None]
        pieces.append(codes)
        wrong += float((rows - back).square().sum(dtype=torch.float64))
        norm += float(rows.square().sum(dtype=torch.float64))
    stem = inside.removesuffix(".weight")
    try:
        written = form_of(scheme).write(join_rows(pieces))
    except FormatError as error:
        raise CheckpointError(f"{name}: {error}") from None
    line = LayerError(
        name=name.removesuffix(".weight"), scheme=str(scheme), error=(wrong / norm) ** 0.5 if norm else 0.0
    )
    return {f"{stem}.{key}": value for key, value in written.items()}, line


def form_of(scheme: Scheme) -> WritableFormat:
    return AwqGemm(group_size=scheme.group_size or -1) if isinstance(scheme, W4A16) else IntQuantized()


def write_shard(path: Path, tensors: Mapping[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.part")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, fresh, metadata={"format": "pt"})
    os.replace(fresh, path)


class Progress:
    """Which shards are done, in a file of the work folder.

    Args:
        work: the folder.
        asked: what the run was asked for; what another request left is not used.
    """

    def __init__(self, work: Path, *, asked: list[Any]) -> None:
        self.work, self.file = work, work / PROGRESS
        key = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
        known = json.loads(self.file.read_text(encoding="utf-8")) if self.file.is_file() else {}
        self.state: dict[str, Any] = known if known.get("asked") == key else {"asked": key, "shards": {}}

    def has(self, path: Path) -> bool:
        return str(path.relative_to(self.work)) in self.state["shards"] and path.is_file()

    def add(self, path: Path, lines: list[LayerError]) -> None:
        self.state["shards"][str(path.relative_to(self.work))] = [vars(line) for line in lines]
        write_json(self.file, self.state)

    @property
    def lines(self) -> list[LayerError]:
        return [LayerError(**line) for lines in self.state["shards"].values() for line in lines]


def finish(work: Path, target: Path, found: Checkpoint, shards: list[Shard], schemes: Mapping[str, Scheme]) -> None:
    """Indexes, configurations and tokenizer, then the name that makes it a checkpoint."""
    for folder in PARTS.values():
        mine = [shard for shard in shards if shard.part == folder]
        if len(mine) > 1:
            write_index(work / folder, mine)
    configs: dict[str, dict[str, Any]] = {}
    for part, folder in (("llm", "llm"), ("vision", "vision_tower")):
        used = [scheme for name, scheme in schemes.items() if name.startswith(f"{folder}.")]
        if used:
            configs[part] = {FIELD: form_of(used[0]).config(skipped=("lm_head",) if part == "llm" else ())}
    tokenizer = Tokenizer.from_folder(found.tokenizer, chat_template=found.config.chat_template)
    write_descriptions(work, found.config, tokenizer, quantized=configs)
    (work / PROGRESS).unlink()
    os.replace(work, target)


def write_index(folder: Path, shards: list[Shard]) -> None:
    places: dict[str, str] = {}
    total = 0
    for shard in shards:
        with safe_open(folder / shard.file, framework="pt") as file:
            places |= dict.fromkeys(file.keys(), shard.file)
        total += (folder / shard.file).stat().st_size
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": cast(Any, places)})
