"""Compressors by name, for configuration files and command lines."""

from collections.abc import Callable

from nvila_compress.contract import Compressor
from nvila_compress.perceiver import PerceiverResampler
from nvila_compress.spatial import SpatialToChannel
from nvila_compress.temporal import TemporalAverage
from nvila_compress.token_learner import TokenLearner

SIGLIP_WIDTH = 1152

_BUILDERS: dict[str, Callable[[int], Compressor]] = {
    "stc-2x2": lambda channels: SpatialToChannel(2),
    "stc-3x3": lambda channels: SpatialToChannel(3),
    "stc-4x4": lambda channels: SpatialToChannel(4),
    "temporal-2": lambda channels: TemporalAverage(2),
    "temporal-4": lambda channels: TemporalAverage(4),
    "temporal-8": lambda channels: TemporalAverage(8),
    "token-learner-121": lambda channels: TokenLearner(channels=channels, tokens=121),
    "token-learner-256": lambda channels: TokenLearner(channels=channels, tokens=256),
    "perceiver-121": lambda channels: PerceiverResampler(channels=channels, tokens=121),
    "perceiver-256": lambda channels: PerceiverResampler(channels=channels, tokens=256),
}


def list_compressors() -> list[str]:
    """The names that ``build`` knows."""
    return list(_BUILDERS)


def build(name: str, *, channels: int = SIGLIP_WIDTH) -> Compressor:
    """Make a compressor by name, such as ``"stc-3x3"``.

    Args:
        name: one of ``list_compressors()``.
        channels: width of the tokens, for those with parameters; the width of SigLIP so400m if not given.

    Returns: an ``nn.Module`` that keeps the ``Compressor`` protocol.
    Raises: ValueError for a name that is not registered.
    """
    if name not in _BUILDERS:
        raise ValueError(
            f"no compressor named {name!r}: take one of {', '.join(_BUILDERS)}, or a class for another size"
        )
    return _BUILDERS[name](channels)
