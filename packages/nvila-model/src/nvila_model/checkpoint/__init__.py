"""Checkpoints on disk and on the hub."""

from typing import TYPE_CHECKING

from nvila_model.lazy import lazy_names

if TYPE_CHECKING:
    from nvila_model.checkpoint.adapter import add_adapter
    from nvila_model.checkpoint.assembly import stored_dtype
    from nvila_model.checkpoint.hub import NANO, locate
    from nvila_model.checkpoint.layout import Checkpoint, open_checkpoint
    from nvila_model.checkpoint.loading import fill_parameters, load, set_parameter
    from nvila_model.checkpoint.names import from_published, published_names, to_published
    from nvila_model.checkpoint.original import PARTS
    from nvila_model.checkpoint.quantized import quantized_layers
    from nvila_model.checkpoint.saving import export, save
    from nvila_model.checkpoint.tensor_folder import CheckpointError, CheckpointWarning, TensorFolder, read_json

__all__ = [
    "NANO",
    "PARTS",
    "Checkpoint",
    "CheckpointError",
    "CheckpointWarning",
    "TensorFolder",
    "add_adapter",
    "export",
    "fill_parameters",
    "from_published",
    "load",
    "locate",
    "open_checkpoint",
    "published_names",
    "quantized_layers",
    "read_json",
    "save",
    "set_parameter",
    "stored_dtype",
    "to_published",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "adapter": "add_adapter",
        "assembly": "stored_dtype",
        "hub": "NANO locate",
        "layout": "Checkpoint open_checkpoint",
        "loading": "fill_parameters load set_parameter",
        "names": "from_published published_names to_published",
        "original": "PARTS",
        "quantized": "quantized_layers",
        "saving": "export save",
        "tensor_folder": "CheckpointError CheckpointWarning TensorFolder read_json",
    },
)
