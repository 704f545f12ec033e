"""The processor of a host with a compressor: its class, with one call's worth of changes.

Nothing of the processor itself is changed. Each call goes to a copy of it, of the host's own class, in which the
family's ``count`` has changed what it must; so ``save_pretrained`` writes the host's settings, and a saved processor
cannot be compressed twice.
"""

import json
from pathlib import Path
from typing import Any, cast

from nvila_compress.adapters.family import Family
from nvila_compress.contract import Compressor
from nvila_compress.registry import describe, from_description

FILE = "compressor.json"
"""What describes the compressor, beside the configuration."""


class Counting:
    """What an attached processor knows: the family, the compressor (shared with the model) and the tile."""

    def __init__(self, family: Family, compressor: Compressor, tile: tuple[int, int] | None) -> None:
        self.family, self.compressor, self.tile = family, compressor, tile

    def change(self, processor: Any) -> None:
        self.family.placing.count(processor, self.compressor, self.tile)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy in another process needs no weights."""
        return (counting, (self.family, describe(self.compressor), self.tile))


def counting(family: Family, description: dict[str, Any], tile: tuple[int, int] | None) -> Counting:
    return Counting(family, from_description(description), tile)


class CompressedProcessor:
    """Mixed into the class of an attached processor by ``attach_processor``."""

    _counting: Counting

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return changed(self)(*args, **kwargs)

    def _get_num_multimodal_tokens(self, *args: Any, **kwargs: Any) -> Any:
        return changed(self)._get_num_multimodal_tokens(*args, **kwargs)

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
        saved = host_processor(self).save_pretrained(save_directory, *args, **kwargs)
        write_description(save_directory, describe(self._counting.compressor))
        return saved

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """What is loaded is the host's processor."""
        return cast(Any, cls.__mro__[2]).from_pretrained(*args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return (_rebuild, (type(self).__mro__[2], dict(self.__dict__)))


def attach_processor(processor: Any, family: Family, compressor: Compressor, tile: tuple[int, int] | None) -> None:
    """Make ``processor`` count what is left. It stays the same object and an instance of its class."""
    processor._counting = Counting(family, compressor, tile)
    host = cast(type[Any], type(processor))
    processor.__class__ = type(host.__name__, (CompressedProcessor, host), {"__module__": host.__module__})


def detach_processor(processor: Any) -> None:
    """Undo ``attach_processor``."""
    processor.__class__ = type(processor).__mro__[2]
    del processor._counting


def is_attached(processor: Any) -> bool:
    return isinstance(processor, CompressedProcessor)


def host_processor(processor: Any) -> Any:
    """A copy of the host's own class."""
    host: Any = type(processor).__mro__[2]
    twin: Any = object.__new__(host)
    twin.__dict__.update(processor.__dict__)
    del twin.__dict__["_counting"]
    return twin


def changed(processor: Any) -> Any:
    """The copy that one call goes to."""
    twin = host_processor(processor)
    cast(Counting, processor._counting).change(twin)
    return twin


def _rebuild(host: Any, state: dict[str, Any]) -> Any:
    processor: Any = object.__new__(host)
    processor.__dict__.update(state)
    know: Counting = processor.__dict__["_counting"]
    attach_processor(processor, know.family, know.compressor, know.tile)
    return processor


def write_description(folder: Any, description: dict[str, Any]) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / FILE).write_text(json.dumps(description, indent=2) + "\n")
