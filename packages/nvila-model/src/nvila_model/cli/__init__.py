"""The ``nvila`` command: ask, chat, inspect, models.

Torch takes seconds to import, so commands import what computes inside their functions; ``--help``,
``--version`` and every mistake in an option are answered without it.
"""

from nvila_model.cli.app import app, main

__all__ = ["app", "main"]
