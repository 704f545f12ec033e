"""The original layout: ``config.json``, ``llm/``, ``vision_tower/``, ``mm_projector/``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from nvila_model.checkpoint.tensor_folder import CheckpointError, TensorFolder, read_json

PARTS = {"llm": "llm", "vision": "vision_tower", "projector": "mm_projector"}
"""Our name of each part, and its folder."""

GENERATION = "llm/generation_config.json"

KNOWN_TOWERS = {"radio": "RADIO", "intern": "InternViT", "ps3": "PS3"}


def read_fields(root: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The fields of all files of a checkpoint whose root ``config.json`` is ``root``.

    Raises: CheckpointError for a file that is missing or broken and for models that are not supported.
    """
    refuse_unsupported(root, folder)
    parts = {part: read_json(folder / name / "config.json") for part, name in PARTS.items()}
    if (folder / GENERATION).is_file():
        parts["generation"] = read_json(folder / GENERATION)
    return {**root, **parts}


def refuse_unsupported(root: Mapping[str, Any], folder: Path) -> None:
    """Name the models of the family that need parts which are not here."""
    kind = root.get("model_type")
    if kind != "llava_llama":
        raise CheckpointError(f"{folder / 'config.json'}: model_type {kind!r} is not supported: expected 'llava_llama'")
    tower = root.get("vision_tower_cfg") or {}
    names = f"{tower.get('model_type', '')} {tower.get('architectures', '')}".lower()
    if root.get("ps3"):
        names += " ps3"
    for word, name in KNOWN_TOWERS.items():
        if word in names:
            raise CheckpointError(f"{folder / 'config.json'}: {name} vision towers are not supported: only SigLIP is")


class OriginalTensors(Mapping[str, Tensor]):
    """The tensors of the three folders under their published names: ``llm.``, ``vision_tower.``, ``mm_projector.``."""

    def __init__(self, folder: Path) -> None:
        self.folders: dict[str, TensorFolder] = {}
        for name in PARTS.values():
            if (folder / name / "config.json").is_file() and not weightless(folder / name):
                self.folders[name] = TensorFolder(folder / name)

    def __getitem__(self, name: str) -> Tensor:
        part, rest = name.split(".", 1)
        return self.folders[part][rest]

    def __iter__(self) -> Iterator[str]:
        return (f"{part}.{name}" for part, tensors in self.folders.items() for name in tensors)

    def __len__(self) -> int:
        return sum(len(tensors) for tensors in self.folders.values())

    def shape(self, name: str) -> tuple[int, ...]:
        part, rest = name.split(".", 1)
        return self.folders[part].shape(rest)

    def place(self, name: str) -> Path:
        part, rest = name.split(".", 1)
        return self.folders[part].place(rest)


def weightless(part: Path) -> bool:
    """An identity projector has no weights, so its folder may hold only a configuration."""
    return read_json(part / "config.json").get("mm_projector_type") == "identity"
