"""Measurements, kept for the process and in the user's cache folder."""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any, cast

from nvila_kernels.cpu.folder import replace_file, user_folder
from nvila_kernels.cpu.kernels.candidates import candidates
from nvila_kernels.cpu.machine import machine
from nvila_kernels.cpu.measurement import Measurement, measure
from nvila_kernels.cpu.shape import Shape

logger = logging.getLogger(__name__)


def cache_file() -> Path:
    """Where measurements are kept. Raises: OSError if the user has no folder."""
    return user_folder() / "cpu.json"


class Timings:
    """What was measured on each machine, by shape and kernel.

    A file that cannot be read or written, or that holds something else, costs a measurement, not an answer: it is said
    in the log. What is refused for reasons that do not last is known to this process only.

    Args:
        file: JSON, ``{machine: {shape: {kernel: measurement}}}``; None to keep measurements in the process alone.
    """

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self.known: dict[str, dict[str, dict[str, Any]]] = {}
        self.passing: dict[tuple[str, Shape], dict[str, Measurement]] = {}
        try:
            if file is not None and file.is_file():
                self.known = checked(json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, RecursionError) as error:
            logger.warning("%s cannot be read and is replaced: %s", file, error)

    def of(self, shape: Shape) -> dict[str, Measurement]:
        """Every candidate on the measured form of a shape, measured now if this machine lacks one of them."""
        shape, here = shape.measured, machine()
        if (here, shape) in self.passing:
            return self.passing[here, shape]
        mine = self.known.setdefault(here, {})
        kernels = candidates(shape.bits)
        remembered = measurements(mine.get(str(shape)))
        if remembered.keys() == kernels.keys():
            return remembered
        found = measure(kernels, shape)
        if not all(each.lasting for each in found.values()):
            self.passing[here, shape] = found
            return found
        mine[str(shape)] = {name: asdict(each) for name, each in found.items()}
        self._save()
        return found

    def clear(self) -> None:
        """Forget everything, on disk too."""
        self.known, self.passing = {}, {}
        if self.file is not None:
            self.file.unlink(missing_ok=True)

    def _save(self) -> None:
        if self.file is None:
            return
        try:
            replace_file(self.file, json.dumps(self.known, indent=1).encode())
        except OSError as error:
            logger.warning("%s cannot be written, so the next process measures again: %s", self.file, error)


def checked(held: Any) -> dict[str, dict[str, dict[str, Any]]]:
    """What a file holds. Raises: ValueError if it is no table of machines and shapes."""
    if not isinstance(held, dict) or not all(isinstance(each, dict) for each in cast(dict[Any, Any], held).values()):
        raise ValueError("it holds no table of machines")
    return cast(dict[str, dict[str, dict[str, Any]]], held)


def measurements(entry: object) -> dict[str, Measurement]:
    """One shape's entry of a file; nothing of what another version wrote in another form."""
    if not isinstance(entry, Mapping):
        return {}
    found: dict[str, Measurement] = {}
    for name, fields in cast(Mapping[str, Any], entry).items():
        if (measurement := measurement_of(fields)) is not None:
            found[name] = measurement
    return found


def measurement_of(fields: Any) -> Measurement | None:
    """A measurement from its fields; None if they are others, or of other types."""
    kinds = {"seconds": float | int | None, "error": float | int | None, "refused": str | None, "lasting": bool}
    if not isinstance(fields, Mapping) or cast(Mapping[str, Any], fields).keys() != kinds.keys():
        return None
    if not all(isinstance(fields[name], kind) for name, kind in kinds.items()):
        return None
    return Measurement(**cast(Mapping[str, Any], fields))


@cache
def _timings(file: Path) -> Timings:
    return Timings(file)


def timings() -> Timings:
    """The measurements of this process."""
    try:
        return _timings(cache_file())
    except OSError as error:
        return _unkept(str(error))


@cache
def _unkept(reason: str) -> Timings:
    logger.warning("measurements are not kept: %s", reason)
    return Timings(None)
