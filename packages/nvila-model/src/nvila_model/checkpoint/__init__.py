"""Checkpoints on disk and on the hub."""

from nvila_model.checkpoint.hub import locate
from nvila_model.checkpoint.hugging_face import export_hf
from nvila_model.checkpoint.loading import load
from nvila_model.checkpoint.saving import save
from nvila_model.checkpoint.tensor_folder import CheckpointError

__all__ = ["CheckpointError", "export_hf", "load", "locate", "save"]
