"""The ``nvila-train`` command."""

from nvila_train.cli.app import main

__all__ = ["main"]
