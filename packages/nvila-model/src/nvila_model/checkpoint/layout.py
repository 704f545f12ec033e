"""Which layout a folder has, and what it holds whatever the layout."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nvila_model.checkpoint.hugging_face import is_hugging_face, original_fields
from nvila_model.checkpoint.original import PARTS, OriginalTensors, read_fields
from nvila_model.checkpoint.tensor_folder import CheckpointError, TensorFolder, Tensors, read_json
from nvila_model.config import NVILAConfig


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint on disk, not yet loaded.

    Attributes:
        config: its description in the fields of the original layout.
        tensors: its weights by published name.
        tokenizer: the folder that holds the tokenizer's files.
    """

    config: NVILAConfig
    tensors: Tensors
    tokenizer: Path


def open_checkpoint(folder: Path, overrides: Mapping[str, Any] | None = None) -> Checkpoint:
    """Look into a folder of either layout; ``overrides`` replace top-level fields of the root file.

    Raises: CheckpointError, in one sentence that names the file and what was expected.
    """
    root = {**read_json(folder / "config.json"), **(overrides or {})}
    if is_hugging_face(root):
        tensors = TensorFolder(folder)
        config = validated({**original_fields(root, folder, tensors), **(overrides or {})}, folder)
        return Checkpoint(config=config, tensors=tensors, tokenizer=folder)
    config = validated(read_fields(root, folder), folder)
    return Checkpoint(config=config, tensors=OriginalTensors(folder), tokenizer=folder / PARTS["llm"])


def validated(fields: Mapping[str, Any], folder: Path) -> NVILAConfig:
    try:
        return NVILAConfig.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        where = [str(key) for key in first["loc"]]
        nested = where and where[0] in PARTS and (folder / PARTS[where[0]]).is_dir()
        file = folder / PARTS[where.pop(0)] / "config.json" if nested else folder / "config.json"
        field = ".".join(where)
        said = first.get("ctx", {}).get("error", first["msg"])  # pydantic puts "Value error, " before our own words
        raise CheckpointError(f"{file}: {field + ': ' if field else ''}{said}") from None
