"""Checkpoints on disk and on the hub."""

from nvila_model.checkpoint.folder import CheckpointError
from nvila_model.checkpoint.hub import locate
from nvila_model.checkpoint.load import load
from nvila_model.checkpoint.save import save

__all__ = ["CheckpointError", "load", "locate", "save"]
