"""The files that a quantized checkpoint grows in: what goes into each, and which are done."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from nvila_model.checkpoint.original import PARTS
from nvila_model.checkpoint.tensor_folder import INDEX, ONE_FILE, Tensors, write_json

PROGRESS = "progress.json"
ORDER = ("vision", "projector", "llm")
"""Our names of the parts in the order in which an image meets them."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """What is converted at once.

    Attributes:
        names: the source's tensors.
        block: dotted name of the block that they make up; None for a tensor that is copied.
    """

    names: tuple[str, ...]
    block: str | None = None


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of the result: its part's folder, its name, and what goes into it."""

    part: str
    file: str
    units: tuple[Unit, ...]


@dataclass(frozen=True, kw_only=True)
class LayerError:
    """What became of one layer.

    Attributes:
        name: dotted.
        scheme: what it was quantized to.
        weight_error: ``|W - W'| / |W|``, Frobenius norms.
        output_error: the same of its output on the calibration rows; None without them.
    """

    name: str
    scheme: str
    weight_error: float
    output_error: float | None


def cut(tensors: Tensors, blocks: Mapping[str, Sequence[str]], most: int) -> Iterator[Shard]:
    """The tensors of each part in shards of at most ``most`` bytes; a larger unit has one to itself.

    Args:
        blocks: the tensors of each block that is quantized, by its dotted name and in order. They follow all others.
    """
    taken = {name for names in blocks.values() for name in names}
    for folder in (PARTS[part] for part in ORDER):
        single = [Unit(names=(name,)) for name in sorted(tensors) if belongs(name, folder) and name not in taken]
        whole = [Unit(names=tuple(names), block=key) for key, names in blocks.items() if belongs(names[0], folder)]
        groups: list[list[Unit]] = []
        room = 0
        for unit in (*single, *whole):
            room -= size(tensors, unit)
            if not groups or room < 0:
                groups.append([])
                room = most - size(tensors, unit)
            groups[-1].append(unit)
        for number, units in enumerate(groups, start=1):
            file = ONE_FILE if len(groups) == 1 else f"model-{number:05}-of-{len(groups):05}.safetensors"
            yield Shard(part=folder, file=file, units=tuple(units))


def belongs(name: str, folder: str) -> bool:
    return name.startswith(f"{folder}.")


def size(tensors: Tensors, unit: Unit) -> int:
    """About how many bytes the source takes; 16-bit numbers are assumed."""
    return 2 * sum(int(torch.Size(tensors.shape(name)).numel()) for name in unit.names)


def write_shard(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write one file, which appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.part")
    save_file(dict(tensors), fresh, metadata={"format": "pt"})
    os.replace(fresh, path)


class Progress:
    """Which shards are done, in a file of the work folder.

    Args:
        work: the folder.
        request: what the run shall do; what another request left is not used.
    """

    def __init__(self, work: Path, *, request: Sequence[Any]) -> None:
        self.work, self.file = work, work / PROGRESS
        key = hashlib.sha256(json.dumps(request).encode()).hexdigest()
        known = json.loads(self.file.read_text(encoding="utf-8")) if self.file.is_file() else {}
        self.state: dict[str, Any] = known if known.get("request") == key else {"request": key, "shards": {}}

    def has(self, shard: Shard) -> bool:
        return f"{shard.part}/{shard.file}" in self.state["shards"] and self.path(shard).is_file()

    def path(self, shard: Shard) -> Path:
        return self.work / shard.part / shard.file

    def add(self, shard: Shard, lines: Sequence[LayerError]) -> None:
        self.state["shards"][f"{shard.part}/{shard.file}"] = [vars(line) for line in lines]
        write_json(self.file, self.state)

    def lines(self, shards: Sequence[Shard]) -> list[LayerError]:
        """The errors of the layers of some shards, in their order."""
        found = (self.state["shards"][f"{shard.part}/{shard.file}"] for shard in shards)
        return [LayerError(**line) for lines in found for line in lines]


def write_index(folder: Path, shards: Sequence[Shard]) -> None:
    """``model.safetensors.index.json`` of a part that has several files."""
    places: dict[str, str] = {}
    total = 0
    for shard in shards:
        with safe_open(folder / shard.file, framework="pt") as file:
            places |= dict.fromkeys(file.keys(), shard.file)
        total += (folder / shard.file).stat().st_size
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": cast(Any, places)})
