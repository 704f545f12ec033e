"""Measurements, kept for the process and in the user's cache folder."""

import json
import logging
import os
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from nvila_kernels.cpu.candidates import candidates
from nvila_kernels.cpu.folder import user_folder
from nvila_kernels.cpu.machine import machine
from nvila_kernels.cpu.measurement import Measurement, measure
from nvila_kernels.cpu.shape import Shape

logger = logging.getLogger(__name__)


def cache_file() -> Path:
    """Where measurements are kept."""
    return user_folder() / "cpu.json"


class Timings:
    """What was measured on each machine, by shape and kernel.

    A file that cannot be read or written costs a measurement, not an answer: it is said in the log. What is refused for
    reasons that do not last is known to this process only.

    Args:
        file: JSON, ``{machine: {shape: {kernel: measurement}}}``.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self.known: dict[str, dict[str, dict[str, Any]]] = {}
        self.passing: dict[tuple[str, Shape], dict[str, Measurement]] = {}
        try:
            self.known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        except (OSError, ValueError) as error:
            logger.warning("%s cannot be read and is replaced: %s", file, error)

    def of(self, shape: Shape) -> dict[str, Measurement]:
        """Every candidate on the measured form of a shape, measured now if this machine lacks one of them."""
        shape, here = shape.measured, machine()
        if (here, shape) in self.passing:
            return self.passing[here, shape]
        mine = self.known.setdefault(here, {})
        kernels = candidates(shape.bits)
        if mine.get(str(shape), {}).keys() != kernels.keys():
            found = measure(kernels, shape)
            if not all(each.lasting for each in found.values()):
                self.passing[here, shape] = found
                return found
            mine[str(shape)] = {name: asdict(each) for name, each in found.items()}
            self._save()
        return {name: Measurement(**each) for name, each in mine[str(shape)].items()}

    def clear(self) -> None:
        """Forget everything, on disk too."""
        self.known, self.passing = {}, {}
        self.file.unlink(missing_ok=True)

    def _save(self) -> None:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            fresh = self.file.with_name(f"{self.file.name}.{os.getpid()}")
            fresh.write_text(json.dumps(self.known, indent=1), encoding="utf-8")
            os.replace(fresh, self.file)
        except OSError as error:
            logger.warning("%s cannot be written, so the next process measures again: %s", self.file, error)


@cache
def _timings(file: Path) -> Timings:
    return Timings(file)


def timings() -> Timings:
    """The measurements of this process."""
    return _timings(cache_file())
