"""Projectors: from the vision tower's channels to the language model's.

Each published type is a compressor (how many neighbouring tokens are folded into one, see ``nvila-compress``)
followed by a small MLP. The MLP keeps the published parameter names: ``layers.<index>``, where index 0 is
the folding step that has no parameters.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise

from nvila_compress import Compressor, Fold, SpatialToChannel
from torch import Tensor, nn

LAYER_NORM_EPS = 1e-5
"""Of every LayerNorm in a projector; the vision tower's is 1e-6."""


class Projector(nn.Module):
    """An MLP over the channels of each token.

    Shapes: tokens ``[b, n, in]`` -> ``[b, n, out]``.
    """

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layers(tokens)


class NoCompression(Fold):
    """Every token stays; the compressor of the types that fold nothing."""

    grid_free = True

    @property
    def ratio(self) -> float:
        return 1.0

    def fold(self, tokens: Tensor, grid: tuple[int, int], **context: Tensor) -> Tensor:
        return tokens

    def out_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        return grid


def mlp(widths: list[int], *, normed: int, first: int) -> Projector:
    """Linear layers with exact GELU between them; the first ``normed`` have a LayerNorm in front.

    ``first`` is the index of the first layer in the published names.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    index = first
    for step, (fan_in, fan_out) in enumerate(pairwise(widths)):
        if step:
            layers[str(index)] = nn.GELU()
            index += 1
        if step < normed:
            layers[str(index)] = nn.LayerNorm(fan_in, eps=LAYER_NORM_EPS)
            index += 1
        layers[str(index)] = nn.Linear(fan_in, fan_out)
        index += 1
    return Projector(nn.Sequential(layers))


def folded(factor: int, widths: Callable[[int, int], list[int]]) -> Callable[[int, int], tuple[Compressor, Projector]]:
    def build(channels: int, out: int) -> tuple[Compressor, Projector]:
        sizes = widths(channels, out)
        return SpatialToChannel(factor), mlp(sizes, normed=len(sizes) - 2, first=1)

    return build


def plain(depth: int) -> Callable[[int, int], tuple[Compressor, Projector]]:
    return lambda channels, out: (NoCompression(), mlp([channels] + [out] * depth, normed=0, first=0))


PROJECTORS: dict[str, Callable[[int, int], tuple[Compressor, Projector]]] = {
    "identity": lambda channels, out: (NoCompression(), Projector(nn.Identity())),
    "linear": lambda channels, out: (NoCompression(), Projector(nn.Linear(channels, out))),
    "mlp2x_gelu": plain(2),
    "mlp3x_gelu": plain(3),
    "mlp_downsample": folded(2, lambda c, out: [4 * c, out, out]),
    "mlp_downsample_2x2_fix": folded(2, lambda c, out: [4 * c, out, out]),
    "mlp_downsample_3x3_fix": folded(3, lambda c, out: [9 * c, 3 * c, out, out]),
    "mlp_downsample_3x3_s2": folded(3, lambda c, out: [9 * c, 3 * c, c, c // 3, out, out]),
    "mlp_downsample_3x3_s2_new": folded(3, lambda c, out: [9 * c, 4 * c, 2 * c, c, c // 3, out, out]),
}


def build_projector(kind: str, *, channels: int, out: int) -> tuple[Compressor, Projector]:
    """The compressor and the MLP of a published ``mm_projector_type``.

    Args:
        channels: of the vision features (three times the tower's width with Dynamic-S2).
        out: width of the language model.

    Raises: ValueError for a type that is not known.
    """
    if kind not in PROJECTORS:
        raise ValueError(f"projector type {kind!r} is not supported: choose one of {', '.join(sorted(PROJECTORS))}")
    return PROJECTORS[kind](channels, out)
