"""From a model, or a folder, to a checkpoint; loading it gives the same model again."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from nvila_model.checkpoint.contents import contents_of, stored_contents
from nvila_model.checkpoint.hub import locate
from nvila_model.checkpoint.tensor_folder import SHARD_SIZE
from nvila_model.checkpoint.writing import write_hugging_face, write_original
from nvila_model.network.vlm import VLM

Layout = Literal["original", "hf"]


def save(model: VLM, folder: str | Path, *, shard_size: str = SHARD_SIZE) -> None:
    """Write ``config.json``, ``llm/``, ``vision_tower/`` and ``mm_projector/``.

    Fields and tensors that were in the loaded checkpoint and are not used here are written back. Quantized layers
    are written as ``nvila_model.checkpoint.quantized`` says. An optimized model gives the weights of the folder that it
    was loaded from.

    Args:
        shard_size: the largest file; a part that is larger is split, with an index.

    Raises: CheckpointError, before anything is written, if loading would not give the same model: one that was put
    together by hand and has no configuration or processor, or other parts than its configuration describes.
    """
    write_original(contents_of(model), Path(folder), shard_size=shard_size)


def export(
    model: VLM | str | Path, destination: str | Path, *, layout: Layout = "original", shard_size: str = SHARD_SIZE
) -> None:
    """Write a model, or a checkpoint that need not be loaded, in a layout.

    Args:
        model: a model, a folder of any layout, a hub repository, or ``"nano"``.
        destination: the folder to write.
        layout: ``"original"`` with a folder for each part, or ``"hf"``, the Hugging Face one.
        shard_size: the largest file.

    Raises: CheckpointError, before anything is written, as ``save``, and if the layout cannot describe the model;
        ValueError for a layout of another name.
    """
    if layout not in get_args(Layout):
        raise ValueError(f"layout {layout!r} is not known: use {' or '.join(map(repr, get_args(Layout)))}")
    contents = contents_of(model) if isinstance(model, VLM) else stored_contents(locate(model))
    write = write_original if layout == "original" else write_hugging_face
    write(contents, Path(destination), shard_size=shard_size)
