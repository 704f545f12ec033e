"""What became of a module that was quantized: its layers, and what stayed float."""

import re
from dataclasses import dataclass, replace

from torch import nn

from nvila_kernels.policy import Scheme, every_module


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """What became of one layer.

    Attributes:
        name: dotted.
        scheme: what it was quantized to.
        weight_error: ``|W - W'| / |W|``, Frobenius norms, ``W'`` being the weight that the codes stand for.
        output_error: ``|x W - x' W'| / |x W|`` over the calibration rows, bias left out; None without them.
        bytes_before, bytes_after: parameters and buffers.
    """

    name: str
    scheme: Scheme
    weight_error: float
    output_error: float | None
    bytes_before: int
    bytes_after: int


@dataclass(frozen=True, kw_only=True)
class FloatParameter:
    """A parameter that stays float.

    Attributes:
        name: dotted.
        holder: the class of the module that holds it.
        shape: of the tensor.
        bytes: that it takes.
    """

    name: str
    holder: str
    shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True, kw_only=True)
class QuantReport:
    """What became of a module; as text a table.

    Attributes:
        layers: the quantized ones.
        kept: names of the linear layers that stayed as they were.
        floats: every parameter that stays float, those of ``kept`` among them.
    """

    layers: tuple[LayerReport, ...]
    kept: tuple[str, ...] = ()
    floats: tuple[FloatParameter, ...] = ()

    def under(self, name: str) -> "QuantReport":
        """The same as seen from a module that holds this one as ``name``."""
        return QuantReport(
            layers=tuple(replace(layer, name=f"{name}.{layer.name}") for layer in self.layers),
            kept=tuple(f"{name}.{kept}" for kept in self.kept),
            floats=tuple(replace(each, name=f"{name}.{each.name}") for each in self.floats),
        )

    def __str__(self) -> str:
        width = max((len(layer.name) for layer in self.layers), default=0)
        lines = [f"{'layer':{width}}  weight error  output error  scheme"]
        for layer in self.layers:
            output = "-" if layer.output_error is None else f"{layer.output_error:.4f}"
            lines.append(f"{layer.name:{width}}  {layer.weight_error:12.4f}  {output:>12}  {layer.scheme}")
        before, after = (sum(getattr(x, f"bytes_{when}") for x in self.layers) for when in ("before", "after"))
        lines.append(f"{len(self.layers)} layers, {before / 2**20:.1f} -> {mebibytes(after)}")
        if self.kept:
            lines.append(f"not quantized: {', '.join(self.kept)}")
        return "\n".join(lines + float_lines(self.floats))


def float_lines(floats: tuple[FloatParameter, ...]) -> list[str]:
    """Matrices by name, those of repeated blocks in one line with a star for the number; vectors as one sum."""
    alike: dict[tuple[str, str, tuple[int, ...]], list[FloatParameter]] = {}
    for each in floats:
        if len(each.shape) > 1:
            alike.setdefault((re.sub(r"\b\d+\b", "*", each.name), each.holder, each.shape), []).append(each)
    lines = [
        f"float: {name if len(found) > 1 else found[0].name} ({holder}, {len(found)} of {' x '.join(map(str, shape))}, "
        f"{mebibytes(sum(each.bytes for each in found))})"
        for (name, holder, shape), found in alike.items()
    ]
    if vectors := [each for each in floats if len(each.shape) <= 1]:
        lines.append(f"float: {len(vectors)} vectors, such as {vectors[0].name}")
    return lines


def float_parameters(module: nn.Module) -> tuple[FloatParameter, ...]:
    """Every floating-point parameter of a module, each once."""
    holders = {name: type(child).__name__ for name, child in every_module(module)}
    return tuple(
        FloatParameter(
            name=name, holder=holders[name.rpartition(".")[0]], shape=tuple(tensor.shape), bytes=tensor.nbytes
        )
        for name, tensor in module.named_parameters()
        if tensor.is_floating_point()
    )


def mebibytes(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
