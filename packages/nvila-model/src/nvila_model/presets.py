"""The public NVILA family by name: true dimensions, no weights.

One file a model in ``specs/``, in upstream's ``config.json`` form with the three parts inside it. NVILA-8B is
its released file, less what no code reads; the others follow upstream's training scripts (projector, tiling,
context, frames) and the published Qwen2 and Qwen2.5 sizes. Rows of the vocabulary beyond Qwen's own are known
of NVILA-8B only; elsewhere they follow from the tokens that each kind of checkpoint adds, a matter of at most
a hundred rows.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from nvila_model.config import NVILAConfig

__all__ = ["PresetError", "list_models", "preset", "repository"]

SPECS = Path(__file__).parent / "specs"

PARTS = {"llm": "llm_cfg", "vision": "vision_tower_cfg", "projector": "mm_projector_cfg"}
"""Our name of each part, and the field that holds it in a root ``config.json``."""


class PresetError(ValueError):
    """A name that no preset has."""


def list_models() -> tuple[str, ...]:
    """Names of the presets, the smallest model first."""
    return tuple(sorted((path.stem for path in SPECS.glob("*.json")), key=size_then_name))


def preset(name: str) -> NVILAConfig:
    """The description of a published model.

    >>> preset("NVILA-Lite-2B").llm.hidden_size
    1536

    Raises: PresetError if no preset has this name.
    """
    root = read_spec(name)
    return NVILAConfig.model_validate({**root, **{part: root[field] for part, field in PARTS.items()}})


def repository(name: str) -> str:
    """The hub repository that holds the weights of a preset. Raises: PresetError if no preset has this name."""
    return read_spec(name)["_name_or_path"]


def read_spec(name: str) -> dict[str, Any]:
    if name not in list_models():
        raise PresetError(f"no preset {name!r}: choose one of {', '.join(list_models())}")
    return json.loads((SPECS / f"{name}.json").read_text(encoding="utf-8"))


def size_then_name(name: str) -> tuple[int, str]:
    found = re.search(r"-(\d+)B", name)
    return (int(found[1]) if found else 0, name)
