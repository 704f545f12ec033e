"""Whole models in few bits, in memory or on disk."""

from typing import TYPE_CHECKING

from nvila_model.lazy import lazy_names

if TYPE_CHECKING:
    from nvila_model.quantization.blocks import quantize_model, usual_policy
    from nvila_model.quantization.conversion import CalibrationError, quantize
    from nvila_model.quantization.rules import PolicyError, read_policy
    from nvila_model.quantization.shards import LayerError
    from nvila_model.quantization.streaming import quantize_checkpoint

__all__ = [
    "CalibrationError",
    "LayerError",
    "PolicyError",
    "quantize",
    "quantize_checkpoint",
    "quantize_model",
    "read_policy",
    "usual_policy",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "blocks": "quantize_model usual_policy",
        "conversion": "CalibrationError quantize",
        "rules": "PolicyError read_policy",
        "shards": "LayerError",
        "streaming": "quantize_checkpoint",
    },
)
