"""The ``nvila`` command: ask, chat, inspect, models.

Torch takes seconds to import, so commands import what computes inside their functions; ``--help``,
``--version`` and every mistake in an option are answered without it. OpenMP reads its settings when torch comes.
"""

import os

from nvila_model.cpu.openmp import wait_briefly

wait_briefly(os.environ)

from nvila_model.cli.app import app, main  # noqa: E402

__all__ = ["app", "main"]
