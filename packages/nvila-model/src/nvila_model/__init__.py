"""NVILA assembled from swappable parts: load, ask, stream.

Names are imported when they are first used, so that ``nvila --help`` does not wait for torch.
"""

from typing import TYPE_CHECKING

from nvila_model.lazy import lazy_names

if TYPE_CHECKING:
    from nvila_model.checkpoint.saving import export
    from nvila_model.checkpoint.tensor_folder import CheckpointError
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
    from nvila_model.quantization.conversion import quantize

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
    "export",
    "list_models",
    "preset",
    "quantize",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "checkpoint.saving": "export",
        "checkpoint.tensor_folder": "CheckpointError",
        "config": "NVILAConfig",
        "estimate": "count_tokens estimate_memory",
        "generation.decoding": "Answer BudgetError",
        "generation.sampling": "Sampling",
        "inputs.media": "Image Video",
        "inputs.model_inputs": "ModelInputs",
        "inputs.processor": "Processor",
        "inputs.sources": "MediaError",
        "nvila": "NVILA",
        "parity": "Parity",
        "presets": "list_models preset",
        "quantization.conversion": "quantize",
    },
)
