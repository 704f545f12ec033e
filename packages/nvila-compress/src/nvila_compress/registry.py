"""Compressors by name and as plain data, for configuration files, command lines and what a model saves.

A name is a method and, after the last hyphen, its size: ``"stc-3x3"`` (a neighbourhood), ``"perceiver-121"`` (a
number of tokens), ``"temporal-8"`` (a number of frames), ``"divprune-25%"`` or ``"divprune-64"`` (a budget: a share or
a number). ``build`` makes one by name; any size will do, not only those that ``list_compressors`` lists.

A description is the method and all its constructor's arguments, ``{"name": "stc", "factor": 3}``: what is written
beside a host's config. It never holds an import path, so that reading one runs nothing that was not registered.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from nvila_compress.choose.baselines import RandomChoice, UniformChoice
from nvila_compress.choose.cdpruner import CDPruner
from nvila_compress.choose.dart import DART
from nvila_compress.choose.divprune import DivPrune
from nvila_compress.choose.prumerge import PruMerge
from nvila_compress.choose.visionzip import VisionZip
from nvila_compress.contract import Choose, Compressor
from nvila_compress.fold.c_abstractor import CAbstractor
from nvila_compress.fold.nested import NestedPool
from nvila_compress.fold.perceiver import PerceiverResampler
from nvila_compress.fold.pixel_shuffle import PixelShuffle
from nvila_compress.fold.pool import AdaptivePool, AveragePool
from nvila_compress.fold.spatial_to_channel import SpatialToChannel
from nvila_compress.fold.token_learner import TokenLearner
from nvila_compress.fold.token_packer import TokenPacker
from nvila_compress.merge.tome import ToMe
from nvila_compress.video.evs import EVS
from nvila_compress.video.fastvid import FastVID
from nvila_compress.video.temporal_average import TemporalAverage
from nvila_compress.video.vidcom2 import VidCom2

SIGLIP_WIDTH = 1152


def number(size: str) -> int:
    """``"121"``: a number of tokens or frames."""
    return int(size)


def square(size: str) -> int:
    """``"3x3"``: the side of a square neighbourhood."""
    rows, columns = map(int, size.split("x"))
    if rows != columns:
        raise ValueError
    return rows


def rows_and_columns(size: str) -> tuple[int, int]:
    """``"12x12"``: a grid."""
    rows, columns = map(int, size.split("x"))
    return rows, columns


def share_or_number(size: str) -> int | float:
    """``"25%"`` or ``"64"``: a budget."""
    return float(size.removesuffix("%")) / 100 if size.endswith("%") else int(size)


@dataclass(frozen=True, kw_only=True)
class Method:
    """How a registered class is built from a name.

    Args:
        kind: the class.
        argument: the constructor's argument that the size in the name gives; None where the name has no size.
        read: turns the size into that argument.
        sizes: those that ``list_compressors`` lists.
    """

    kind: type[Any]
    argument: str | None = None
    read: Callable[[str], Any] = number
    sizes: tuple[str, ...] = ()


_METHODS: dict[str, Method] = {}


def register(
    name: str,
    kind: type[Any],
    *,
    argument: str | None = None,
    read: Callable[[str], Any] = number,
    sizes: tuple[str, ...] = (),
) -> None:
    """Make a class of compressors known by ``name``, to ``build``, ``describe`` and ``from_description``.

    Args:
        name: of the method, without a size.
        kind: the class. Its constructor keeps each argument as an attribute of the same name; ``channels``, if it has
            that argument, is given by ``build``.
        argument: the constructor's argument that the size in a name gives. Choosers take their budget, ``keep``,
            without being asked.
        read: turns the size, a string, into that argument.
        sizes: those to list.

    Raises: ValueError for a name that is taken by another class.
    """
    if name in _METHODS and _METHODS[name].kind is not kind:
        raise ValueError(f"the name {name!r} is taken by {_METHODS[name].kind.__name__}: choose another")
    if argument is None and issubclass(kind, Choose):
        argument, read, sizes = "keep", share_or_number, sizes or ("25%",)
    _METHODS[name] = Method(kind=kind, argument=argument, read=read, sizes=sizes)


def list_compressors() -> list[str]:
    """Names that ``build`` knows, each method in its usual sizes."""
    return [f"{name}-{size}" if size else name for name, method in _METHODS.items() for size in (method.sizes or ("",))]


def build(name: str, *, channels: int = SIGLIP_WIDTH) -> Any:
    """Make a compressor by name, such as ``"stc-3x3"`` or ``"divprune-25%"``.

    Args:
        name: a method and its size; ``list_compressors()`` lists usual ones.
        channels: width of the tokens, for those with parameters; the width of SigLIP so400m if not given.

    Returns: an ``nn.Module`` that keeps the ``Compressor`` protocol.
    Raises: ValueError for a method that is not registered or a size that it cannot have.
    """
    method, size = _METHODS.get(name), ""
    if method is None:
        stem, _, size = name.rpartition("-")
        method = _METHODS.get(stem) if size else None
    if method is None or (method.argument is None and size):
        raise ValueError(f"no compressor named {name!r}: take one of {', '.join(list_compressors())}, or another size")
    parameters = inspect.signature(method.kind).parameters
    arguments: dict[str, Any] = {"channels": channels} if "channels" in parameters else {}
    usual = " or ".join(f"{name.rpartition('-')[0] or name}-{usual}" for usual in method.sizes)
    if method.argument is not None and size:
        try:
            arguments[method.argument] = method.read(size)
        except ValueError:
            raise ValueError(f"{size!r} is no size in {name!r}: write it like {usual}") from None
    elif method.argument is not None and parameters[method.argument].default is inspect.Parameter.empty:
        raise ValueError(f"{name!r} has no usual size: write one, like {usual}")
    return method.kind(**arguments)


def describe(compressor: Compressor) -> dict[str, Any]:
    """A compressor as plain data: the name of its method and its constructor's arguments.

    Weights are not in it. ``from_description`` makes the same compressor again, with new weights if it has any.

    Raises: ValueError for a class that is not registered, for one that does not keep its arguments, and for an
        argument that is no plain data.
    """
    kind = type(compressor)
    name = next((name for name, method in _METHODS.items() if method.kind is kind), None)
    if name is None:
        raise ValueError(
            f"{kind.__name__} has no name: nvila_compress.register('a-name', {kind.__name__}) gives it one"
        )
    arguments: dict[str, Any] = {}
    for argument in arguments_of(kind):
        if not hasattr(compressor, argument):
            raise ValueError(f"{kind.__name__} does not keep its argument {argument}: set self.{argument} in __init__")
        arguments[argument] = plain(getattr(compressor, argument), f"{kind.__name__}.{argument}")
    return {"name": name, **arguments}


def from_description(description: Mapping[str, Any]) -> Any:
    """Make the compressor that ``describe`` described.

    Raises: ValueError for a name that is not registered or arguments that its class does not take.
    """
    arguments = dict(description)
    name = arguments.pop("name", None)
    if not isinstance(name, str) or name not in _METHODS:
        raise ValueError(
            f"no compressor named {name!r} among {', '.join(_METHODS)}: "
            "register the class before loading what was saved with it"
        )
    kind = _METHODS[name].kind
    for argument in arguments.keys() - arguments_of(kind):
        raise ValueError(f"{name} takes no {argument!r}, but {', '.join(arguments_of(kind))}: correct the description")
    try:
        inspect.signature(kind).bind(**arguments)
    except TypeError as error:
        raise ValueError(f"the description of {name} is not whole: {error}") from None
    return kind(**arguments)


def arguments_of(kind: type[Any]) -> list[str]:
    """The names of a constructor's arguments."""
    return list(inspect.signature(kind).parameters)


def plain(value: Any, name: str) -> Any:
    """``value`` as JSON would hold it. Raises: ValueError where it could not."""
    if isinstance(value, tuple | list):
        return [plain(item, name) for item in cast(Sequence[Any], value)]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"{name} is a {type(value).__name__}: only numbers, strings and lists of them can be written down")


register("stc", SpatialToChannel, argument="factor", read=square, sizes=("2x2", "3x3", "4x4"))
register("pixel-shuffle", PixelShuffle, argument="factor", read=square, sizes=("2x2",))
register("pool", AveragePool, argument="factor", read=square, sizes=("2x2", "3x3"))
register("adaptive-pool", AdaptivePool, argument="grid", read=rows_and_columns, sizes=("12x12",))
register("nested", NestedPool, argument="level", sizes=("1", "2"))
register("temporal", TemporalAverage, argument="group", sizes=("2", "4", "8"))
register("token-learner", TokenLearner, argument="tokens", sizes=("121", "256"))
register("perceiver", PerceiverResampler, argument="tokens", sizes=("121", "256"))
register("c-abstractor", CAbstractor, argument="grid", read=rows_and_columns, sizes=("12x12",))
register("token-packer", TokenPacker, argument="factor", read=square, sizes=("2x2",))
register("random", RandomChoice)
register("uniform", UniformChoice)
register("divprune", DivPrune)
register("dart", DART)
register("cdpruner", CDPruner)
register("visionzip", VisionZip)
register("prumerge", PruMerge)
register("tome", ToMe)
register("evs", EVS)
register("vidcom2", VidCom2)
register("fastvid", FastVID)
