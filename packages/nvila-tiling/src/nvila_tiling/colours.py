"""How pixels are scaled for a tower: the mean and deviation of each colour that it was trained with.

SigLIP's are a half each, CLIP's those of its photos. A tower that is shown the other's is off by a quarter in its
features and says nothing, so they are read from whatever prepares pictures for it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from .errors import TilingError

Triple: TypeAlias = tuple[float, float, float]


@dataclass(frozen=True)
class Colours:
    """Mean and deviation of red, green and blue, of values from 0 to 1. Raises: TilingError for what cannot be."""

    mean: Triple
    std: Triple

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3 or not all(0 <= value < 256 for value in values):
                raise TilingError(f"{name} {values} must be three numbers, for red, green and blue, from 0 to 1")
        if max(*self.mean, *self.std) > 1:
            raise TilingError(f"mean {self.mean} and std {self.std} are of values to 255: divide them by 255")
        if min(self.std) <= 0:
            raise TilingError(f"std {self.std} must be above 0")


HALVES = Colours((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""SigLIP's: values from -1 to 1."""

CLIP = Colours((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
"""OpenAI's, which CLIP towers of transformers were trained with."""


def colours_of(processor: object) -> Colours:
    """The mean and deviation of whatever prepares pictures for a tower.

    Args:
        processor: an image processor of transformers (or a processor that holds one), open-clip's preprocessing
            (a composition that ends in a normalisation), or timm's data config (``mean`` and ``std``).

    Raises: TilingError if it names none.
    """
    inner = getattr(processor, "image_processor", processor)
    if getattr(inner, "do_normalize", True) is False:
        return Colours((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    candidates: list[object] = [inner, *cast("list[object]", getattr(inner, "transforms", []))]
    for candidate in reversed(candidates):
        for names in (("image_mean", "image_std"), ("mean", "std")):
            mean, std = (_read(candidate, name) for name in names)
            if mean is not None and std is not None:
                return Colours(_triple(mean), _triple(std))
    raise TilingError(f"a {type(processor).__name__} names no mean and deviation: pass mean and std to the tiler")


def _read(source: object, name: str) -> Any:
    if isinstance(source, Mapping):
        return cast("Mapping[str, Any]", source).get(name)
    value = getattr(source, name, None)
    return None if callable(value) else value


def _triple(values: Any) -> Triple:
    numbers = [float(values)] * 3 if isinstance(values, (int, float)) else [float(value) for value in values]
    if len(numbers) != 3:
        raise TilingError(f"{numbers} must be three numbers, for red, green and blue")
    return numbers[0], numbers[1], numbers[2]
