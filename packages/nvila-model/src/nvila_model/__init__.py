"""NVILA assembled from swappable parts: load, ask, stream.

Names are imported when they are first used, so that ``nvila --help`` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nvila_model.checkpoint import CheckpointError, export_hf
    from nvila_model.config import NVILAConfig
    from nvila_model.estimate import count_tokens, estimate_memory
    from nvila_model.generation.decoding import Answer, BudgetError
    from nvila_model.generation.sampling import Sampling
    from nvila_model.inputs.media import Image, Video
    from nvila_model.inputs.model_inputs import ModelInputs
    from nvila_model.inputs.processor import Processor
    from nvila_model.inputs.sources import MediaError
    from nvila_model.nvila import NVILA
    from nvila_model.parity import Parity
    from nvila_model.presets import list_models, preset

__all__ = [
    "NVILA",
    "Answer",
    "BudgetError",
    "CheckpointError",
    "Image",
    "MediaError",
    "ModelInputs",
    "NVILAConfig",
    "Parity",
    "Processor",
    "Sampling",
    "Video",
    "count_tokens",
    "estimate_memory",
    "export_hf",
    "list_models",
    "preset",
]

_MODULES = {
    "NVILA": "nvila",
    "Answer": "generation.decoding",
    "BudgetError": "generation.decoding",
    "CheckpointError": "checkpoint",
    "Image": "inputs.media",
    "MediaError": "inputs.sources",
    "ModelInputs": "inputs.model_inputs",
    "NVILAConfig": "config",
    "Parity": "parity",
    "Processor": "inputs.processor",
    "Sampling": "generation.sampling",
    "Video": "inputs.media",
    "count_tokens": "estimate",
    "estimate_memory": "estimate",
    "export_hf": "checkpoint",
    "list_models": "presets",
    "preset": "presets",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
