"""A family of hosts: how its image tokens are counted, placed and positioned, and the table of all of them.

``register_family`` adds a row, for ``attach`` to find by ``config.model_type``. What a row says is little; the work
is in its ``Placing``, one for each way of placing tokens, which several hosts share.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, cast

from torch import nn

from nvila_compress.adapters.after_projector import TokenCompression, check_in_time
from nvila_compress.adapters.blocks import in_time
from nvila_compress.contract import Choose, Compressor

REFUSED = {
    "mllama": "its language model reads the picture by cross-attention, with a mask that counts every patch of "
    "a tile: no image tokens stand in the prompt that could be fewer",
    "idefics": "its language model reads the picture by cross-attention: no image tokens stand in the prompt",
    "instructblip": "its Q-Former reads a picture into a fixed number of queries that were trained together",
    "blip-2": "its Q-Former reads a picture into a fixed number of queries that were trained together",
}
"""Hosts that cannot be helped, and why."""


class Placing(ABC):
    """One way of placing image tokens.

    ``count`` changes a processor, ``place`` a model; both must come to the same numbers, best by describing the
    image as ``Block`` s and leaving the arithmetic to ``out_length`` and ``TokenCompression.sequence``.
    """

    reads_video: bool = False
    """Whether whole videos reach ``place``, so that a compressor in time can be attached."""
    no_video: str = "has no video"
    """Why not, as the end of a sentence."""

    @abstractmethod
    def tile(self, host: nn.Module, processor: Any) -> tuple[int, int] | None:
        """Rows and columns of one tile, where all are alike; ``None`` where they vary. Raises: GridError."""
        ...

    @abstractmethod
    def count(self, processor: Any, compressor: Compressor, tile: tuple[int, int] | None) -> None:
        """Make a copy of the host's processor, used for one call, write as many placeholders as there will be."""
        ...

    @abstractmethod
    def place(self, host: nn.Module, owner: nn.Module, family: "Family", compression: TokenCompression,
              tile: tuple[int, int] | None) -> None:  # fmt: skip
        """Let ``compression`` work on the tokens after the projector.

        Hooks must be of this package's classes or set as attributes of ``owner`` that shadow its methods:
        ``detach`` removes both.
        """
        ...

    def gives(self, compressor: Compressor) -> set[str]:
        """What ``place`` passes to a compressor that needs more than tokens, by the names of its ``needs``."""
        return set()

    def levels(self, owner: nn.Module) -> int:
        """Further sets of tokens for the same places."""
        return 0


@dataclass(frozen=True, kw_only=True)
class Family:
    """One row of the table.

    Args:
        model_type: the host's ``config.model_type``; with ``/`` and that of its vision tower where the tower decides
            how tokens are placed (``"llava/pixtral"``).
        placing: how its image tokens are counted, placed and positioned.
        projector: the name of the module that maps the tower's tokens to the language model, a child of the module
            that owns ``get_image_features``.
        layer: the first linear layer in it, if it reads one token each of fixed square tiles: folds go in front.
        since: the first version of transformers that has the host, with a processor whose tokens can be recounted.
    """

    model_type: str
    placing: Placing
    projector: str = "multi_modal_projector"
    layer: str | None = None
    since: str = "4.49"

    def in_front(self, compressor: Compressor) -> bool:
        """Whether a compressor goes in front of the projector: a fold of single tiles, where there is a layer."""
        return self.layer is not None and not isinstance(compressor, Choose) and not in_time(compressor)


_FAMILIES: dict[str, Family] = {}


def register_family(family: Family) -> None:
    """Add a family of hosts, or put another in the place of one of the same ``model_type``."""
    _FAMILIES[family.model_type] = family


def supported_models() -> list[str]:
    """The ``config.model_type`` of the models that ``attach`` knows."""
    return sorted({name.partition("/")[0] for name in _FAMILIES})


def find_family(config: Any) -> Family:
    """The family of a model with ``config``.

    Raises: ValueError for a host that is not known, cannot be helped, or needs another version of transformers.
    """
    model_type = str(getattr(config, "model_type", type(config).__name__))
    tower = str(getattr(getattr(config, "vision_config", None), "model_type", ""))
    family = _FAMILIES.get(f"{model_type}/{tower}") or _FAMILIES.get(model_type)
    if family is None and model_type in REFUSED:
        raise ValueError(f"no compressor can be attached to {model_type!r}: {REFUSED[model_type]}")
    if family is None:
        raise ValueError(
            f"no adapter for {model_type!r} models (there is one for {', '.join(supported_models())}): register_family "
            "adds one, or replace the first linear layer of its projector by CompressedLinear"
        )
    check_version(family)
    return family


def check_version(family: Family) -> None:
    """Raises: ValueError if the installed transformers is older than the host."""
    try:
        installed = version("transformers")
    except PackageNotFoundError:
        raise ValueError(f"{family.model_type} needs transformers>={family.since}, which is not installed") from None
    if numbers(installed) < numbers(family.since):
        raise ValueError(f"{family.model_type} needs transformers>={family.since}, but {installed} is installed")


def numbers(text: str) -> tuple[int, ...]:
    """``"4.49.0"`` -> ``(4, 49, 0)``; what is no number ends it."""
    out: list[int] = []
    for part in text.split("."):
        if not part.isdigit():
            break
        out.append(int(part))
    return tuple(out)


def find_owner(host: nn.Module, family: Family) -> tuple[str, nn.Module]:
    """The module of ``host`` that the projector is a child of, and its name.

    Raises: ValueError if there is none: a part of a model, or a model of another library.
    """
    for name, module in cast(Iterator[tuple[str, nn.Module]], host.named_modules()):
        if family.projector in module._modules:  # pyright: ignore
            return name, module
    raise ValueError(f"{type(host).__name__} has no {family.projector}: pass the whole model, not a part of it")


def check_compressor(compressor: Compressor, family: Family) -> None:
    """Raises: ValueError for a compressor that this family of hosts cannot give what it needs."""
    placing = family.placing
    check_in_time(compressor, placing.reads_video, family.model_type, placing.no_video)
    for need in sorted(compressor.needs - {"previous_frame"} - placing.gives(compressor)):
        raise ValueError(f"{type(compressor).__name__} needs {need}, which is not read from {family.model_type} hosts")
