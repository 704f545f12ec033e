"""The ``nvila`` command: ask, chat, inspect, models.

Torch takes seconds to import, so commands import what computes inside their functions; ``--help``,
``--version`` and every mistake in an option are answered without it. OpenMP reads its settings when torch comes: its
threads shall sleep when they have nothing to do, since the kernels of other libraries run on the same cores.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from nvila_model.cli.app import app, main

__all__ = ["app", "main"]
