"""Which layer becomes what: globs over dotted names, the first match decides.

A policy knows names, types and shapes only, so that it can be checked against a model on the ``meta`` device
before the first weight is read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor, nn

from nvila_kernels.pack import BLOCK, kernel_group
from nvila_kernels.quantization import Int4Codes, quantize_int4

__all__ = ["W4A16", "W8A8", "QuantPolicy", "Scheme", "every_module", "linear_layers", "usual_policy"]


@dataclass(frozen=True, kw_only=True)
class W4A16:
    """4-bit weights, activations as they come.

    Args:
        group_size: input features that share a scale: 32, 64, a multiple of 128, or 0 for a whole row.
        symmetric: no zero points.
        scale_dtype: float16 or bfloat16.
        clip: narrow each group's range where the calibration activations say that it pays; needs them.
        accumulate: ``"float16"`` sums each group in float16 on the tensor cores, for float16 activations only. A group
            sum overflows from activations of about 34; scale them first (``nvila_kernels.calibrate``).

    Raises: ValueError for another type to accumulate in.
    """

    group_size: int = BLOCK
    symmetric: bool = False
    scale_dtype: torch.dtype = torch.float16
    clip: bool = False
    accumulate: Literal["float32", "float16"] = "float32"

    def __post_init__(self) -> None:
        if self.accumulate not in ("float32", "float16"):
            raise ValueError(f"{self.accumulate!r} cannot accumulate: use 'float32' or 'float16'")

    def quantize(self, weight: Tensor) -> Int4Codes:
        """Round ``[n, k]`` to nearest."""
        return quantize_int4(weight, group_size=self.group_size, symmetric=self.symmetric, dtype=self.scale_dtype)

    def __str__(self) -> str:
        group = f"g{self.group_size}" if self.group_size else "row"
        extras = ["symmetric"] * self.symmetric + ["clipped"] * self.clip
        return " ".join(["w4a16", group, *extras] + ["float16 sums"] * (self.accumulate == "float16"))


@dataclass(frozen=True, kw_only=True)
class W8A8:
    """8-bit weights and activations.

    Args:
        static: one activation scale for all tokens, from the largest calibration activation, instead of one a
            token, measured as it comes; needs calibration activations.
    """

    static: bool = False

    def __str__(self) -> str:
        return "w8a8 static" if self.static else "w8a8"


Scheme = W4A16 | W8A8

HEADS = ("lm_head", "embed_out", "head", "classifier", "score", "heads")
"""Last names of layers that make logits: few weights, and every rounding of theirs moves an answer."""


@dataclass(frozen=True)
class QuantPolicy:
    """Rules that say how each linear layer is quantized.

    Args:
        rules: pairs of a glob over dotted module names and a scheme, or None to leave the layer as it is. A
            star stands for any text, dots included. The first rule that matches a layer decides; a layer that
            no rule matches stays as it is.

    >>> policy = QuantPolicy((("lm_head", None), ("*.down_proj", W4A16(group_size=64)), ("*", W4A16())))
    >>> str(policy.scheme_of("layers.3.mlp.down_proj"))
    'w4a16 g64'
    """

    rules: tuple[tuple[str, Scheme | None], ...]

    def scheme_of(self, name: str) -> Scheme | None:
        """The scheme of the layer called ``name``; None if it stays as it is."""
        return next((scheme for pattern, scheme in self.rules if fnmatchcase(name, pattern)), None)

    def assign(self, module: nn.Module) -> dict[str, Scheme]:
        """The scheme of every linear layer that is to be quantized, by dotted name. Weights are not read.

        Raises: ValueError naming every layer that its scheme does not fit, and every rule with a scheme that
        matches no linear layer.
        """
        chosen = {name: scheme for name in linear_layers(module) if (scheme := self.scheme_of(name)) is not None}
        found = [*self._idle_rules(module), *(obstacle(name, module, scheme) for name, scheme in chosen.items())]
        refuse(text for text in found if text)
        return chosen

    def _idle_rules(self, module: nn.Module) -> Iterator[str]:
        names = linear_layers(module)
        others = {name: type(child).__name__ for name, child in every_module(module)}
        for pattern, scheme in self.rules:
            if scheme is None or any(fnmatchcase(name, pattern) for name in names):
                continue
            kind = f"names a {others[pattern]}" if pattern in others else "matches no layer of that kind"
            yield f"rule {pattern!r} {kind}: give the names of torch.nn.Linear layers"


def usual_policy(module: nn.Module, scheme: Scheme) -> QuantPolicy:
    """One scheme for every linear layer of ``torch.nn.Linear``'s own class but output heads, which stay floats.

    A head is a layer of one of the names ``HEADS``, or one whose weight is an embedding's too.
    Raises: ValueError if no layer is left, naming the kinds of modules that hold the weights.
    """
    embeddings = {id(child.weight) for _, child in every_module(module) if isinstance(child, nn.Embedding)}
    layers = linear_layers(module)
    kept = [
        name
        for name, layer in layers.items()
        if type(layer) is not nn.Linear or name.rpartition(".")[2] in HEADS or id(layer.weight) in embeddings
    ]
    if len(kept) == len(layers):
        raise ValueError(
            f"nothing was quantized: {len(layers)} torch.nn.Linear layers are there, {len(kept)} of them output heads "
            f"or of a class of their own; the weights stand in {', '.join(weight_holders(module)) or 'no module'}: "
            "quantize_ takes torch.nn.Linear layers, so convert these first"
        )
    return QuantPolicy((*((name, None) for name in kept), ("*", scheme)))


def weight_holders(module: nn.Module) -> list[str]:
    """The classes of modules that hold matrices themselves, the largest share of weights first."""
    counts: dict[str, int] = {}
    for child in dict(every_module(module)).values():
        held = sum(each.numel() for each in child.parameters(recurse=False) if each.ndim > 1)
        counts[type(child).__name__] = counts.get(type(child).__name__, 0) + held
    return sorted((name for name in counts if counts[name]), key=lambda name: -counts[name])


def linear_layers(module: nn.Module) -> dict[str, nn.Linear]:
    """Every linear layer by its dotted name; one that stands in two places has two names."""
    return {name: child for name, child in every_module(module) if isinstance(child, nn.Linear)}


def every_module(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module by its dotted name; one that stands in two places has two names."""
    yield from module.named_modules(remove_duplicate=False)  # pyright: ignore[reportUnknownMemberType]


def obstacle(name: str, module: nn.Module, scheme: Scheme) -> str | None:
    """Why the layer cannot be quantized this way; None if it can."""
    if not name:
        return "the module is itself the linear layer, and nothing holds it: use Int4Linear or Int8Linear.from_linear"
    layer = module.get_submodule(name)
    if type(layer) is not nn.Linear:
        return f"{name} is a {type(layer).__name__}, whose own behaviour would be lost: give its rule the scheme None"
    if isinstance(scheme, W4A16):
        try:
            kernel_group(layer.in_features, scheme.group_size)
        except ValueError as error:
            return f"{name}: {error}"
    return None


def refuse(reasons: Iterator[str]) -> None:
    """Raise one ValueError with all reasons, if there are any."""
    if found := list(reasons):
        raise ValueError("nothing was quantized:\n  " + "\n  ".join(found))
