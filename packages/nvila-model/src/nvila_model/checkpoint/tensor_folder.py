"""Safetensors on disk, memory-mapped: one file, or several with an index."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nvila_model.inputs.json_file import JSONFileError, parse_json

ONE_FILE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_SIZE = "5GB"


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, or that describes a model which is not supported."""


class CheckpointWarning(UserWarning):
    """A checkpoint that can be used, though not all of it."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of a checkpoint.

    Raises: CheckpointError if the file is absent, cannot be read or is not a JSON object.
    """
    try:
        content = parse_json(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: a checkpoint folder needs it") from None
    except JSONFileError as error:
        raise CheckpointError(f"{error}: fetch the file again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}: expected a JSON object")
    return content


class Tensors(Protocol):
    """Tensors under their published names, read when asked for."""

    def __getitem__(self, name: str, /) -> Tensor: ...
    def __contains__(self, name: object, /) -> bool: ...
    def __iter__(self) -> Any: ...
    def shape(self, name: str) -> tuple[int, ...]: ...
    def place(self, name: str) -> Path: ...


class TensorFolder(Mapping[str, Tensor]):
    """The tensors of a folder by name, read when asked for and backed by the file.

    Each has a mapping of its own, so that the pages that were read of it go when it goes.

    Raises: CheckpointError if the folder has no safetensors file, or one that is broken. Pickled weights
    (``.bin``, ``.pt``) are never opened.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, Any] = {}
        self._places = dict(self._find())

    def _find(self) -> Iterator[tuple[str, str]]:
        if (self.folder / INDEX).is_file():
            places = self._read_index()
            for file in sorted(set(places.values())):
                present = set(self._open(file).keys())
                missing = sorted(name for name, where in places.items() if where == file and name not in present)
                if missing:
                    raise CheckpointError(f"{self.folder / file} lacks {missing[0]!r}, which {INDEX} promises there")
            yield from places.items()
        else:
            yield from ((name, ONE_FILE) for name in self._open(ONE_FILE).keys())  # noqa: SIM118

    def _read_index(self) -> dict[str, str]:
        """The file of every tensor. One outside of the folder is refused: an index may come from anywhere."""
        places = read_json(self.folder / INDEX).get("weight_map")
        beside = isinstance(places, dict) and all(isinstance(f, str) and Path(f).name == f for f in places.values())
        if not isinstance(places, dict) or not beside:
            raise CheckpointError(
                f"{self.folder / INDEX} has no weight_map from tensors to files beside it: fetch the file again"
            )
        return places

    def _open(self, file: str) -> Any:
        if file not in self._files:
            path = self.folder / file
            if not path.is_file():
                pickled = [other.name for other in self.folder.glob("*.bin")]
                hint = f" (found {pickled[0]}: pickled weights are never opened)" if pickled else ""
                raise CheckpointError(f"{path} is missing{hint}: weights are read from safetensors")
            try:
                self._files[file] = safe_open(path, framework="pt")
            except SafetensorError as error:
                raise CheckpointError(f"{path} is not a whole safetensors file ({error}): fetch it again") from None
        return self._files[file]

    def __getitem__(self, name: str) -> Tensor:
        with safe_open(self.place(name), framework="pt") as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return tuple(self._open(self._places[name]).get_slice(name).get_shape())

    def place(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self.folder / self._places[name]


def write_tensors(folder: Path, tensors: Mapping[str, Tensor], *, shard_size: str = SHARD_SIZE) -> None:
    """Write tensors as safetensors, split into shards with an index where they are many.

    Each file appears whole or not at all.
    """
    from huggingface_hub import split_torch_state_dict_into_shards  # a library that reading does without

    folder.mkdir(parents=True, exist_ok=True)
    whole = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    shards = split_torch_state_dict_into_shards(whole, max_shard_size=shard_size)
    for file, names in shards.filename_to_tensors.items():
        fresh = folder / f".{file}.part"
        save_file({name: whole[name] for name in names}, fresh, metadata={"format": "pt"})
        os.replace(fresh, folder / file)
    kept = set(shards.filename_to_tensors)
    if shards.is_sharded:
        kept.add(INDEX)
        write_json(folder / INDEX, {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename})
    for stale in {*folder.glob("model*.safetensors"), folder / INDEX}:
        if stale.name not in kept:
            stale.unlink(missing_ok=True)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object with sorted keys; the file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.part")
    fresh.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(fresh, path)


def resized(tensor: Tensor, rows: int) -> Tensor:
    """An embedding or a head with ``rows`` rows.

    Rows that are too many are cut off. New ones are the mean of the old ones, so that a token that was never
    trained never wins; this is what the reference's library does, less its noise of 1e-9.
    """
    if tensor.shape[0] == rows:
        return tensor
    if tensor.shape[0] > rows:
        return tensor[:rows].clone()
    grown = torch.empty(rows, *tensor.shape[1:], dtype=tensor.dtype)
    grown[: len(tensor)] = tensor
    grown[len(tensor) :] = tensor.float().mean(0)
    return grown
