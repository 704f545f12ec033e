"""Quantize the linear layers of any module in place, and say what it cost.

A whole model takes one call, ``quantize_``. A model that does not fit in memory takes the same steps apart:
``QuantPolicy.assign`` on the ``meta`` device, then ``replace_`` on each block as its weights arrive.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from nvila_kernels.calibrate.clip import round_int4
from nvila_kernels.calibrate.observe import Observed
from nvila_kernels.modules import Int4Linear, Int8Linear
from nvila_kernels.policy import W4A16, QuantPolicy, Scheme, linear_layers, refuse
from nvila_kernels.quantization import INT8_MAX, dequantize_int4, quantize_int8, quantize_int8_static

__all__ = ["LayerReport", "QuantReport", "quantize_", "quantize_linear", "replace_"]


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
class QuantReport:
    """What became of a module; as text a table.

    Attributes:
        layers: the quantized ones.
        kept: names of the linear layers that stayed as they were.
    """

    layers: tuple[LayerReport, ...]
    kept: tuple[str, ...] = ()

    def under(self, name: str) -> "QuantReport":
        """The same as seen from a module that holds this one as ``name``."""
        layers = tuple(replace(layer, name=f"{name}.{layer.name}") for layer in self.layers)
        return QuantReport(layers=layers, kept=tuple(f"{name}.{kept}" for kept in self.kept))

    def __str__(self) -> str:
        width = max((len(layer.name) for layer in self.layers), default=0)
        lines = [f"{'layer':{width}}  weight error  output error  scheme"]
        for layer in self.layers:
            output = "-" if layer.output_error is None else f"{layer.output_error:.4f}"
            lines.append(f"{layer.name:{width}}  {layer.weight_error:12.4f}  {output:>12}  {layer.scheme}")
        before, after = (sum(getattr(x, f"bytes_{when}") for x in self.layers) for when in ("before", "after"))
        lines.append(f"{len(self.layers)} layers, {before / 2**20:.1f} -> {after / 2**20:.1f} MiB")
        if self.kept:
            lines.append(f"not quantized: {', '.join(self.kept)}")
        return "\n".join(lines)


def quantize_(module: nn.Module, policy: QuantPolicy, *, observed: Mapping[str, Observed] | None = None) -> QuantReport:
    """Replace linear layers by quantized ones, in place.

    Args:
        module: anything that holds ``torch.nn.Linear`` layers of float32, float16 or bfloat16.
        policy: which of them become what.
        observed: calibration activations by layer name, as :func:`nvila_kernels.calibrate.observe` gives
            them; needed for static scales and clipping, and for output errors in the report.

    Raises: ValueError naming every layer that cannot be quantized; the module is then unchanged.

    >>> model = nn.Sequential(nn.Linear(256, 64), nn.GELU(), nn.Linear(64, 8))
    >>> report = quantize_(model, QuantPolicy((("2", None), ("*", W4A16()))))
    >>> type(model[0]).__name__, report.kept
    ('Int4Linear', ('2',))
    """
    return replace_(module, policy.assign(module), observed=observed)


@torch.no_grad()
def replace_(
    module: nn.Module, schemes: Mapping[str, Scheme], *, observed: Mapping[str, Observed] | None = None
) -> QuantReport:
    """:func:`quantize_` with the scheme of each layer already known: one block of a model, for instance."""
    seen = observed or {}
    layers = linear_layers(module)
    found = (missing_data(name, layers[name], scheme, seen.get(name)) for name, scheme in schemes.items())
    refuse(text for text in found if text)
    lines: list[LayerReport] = []
    for name, scheme in schemes.items():
        quantized, line = quantize_linear(name, layers.pop(name), scheme, seen.get(name))
        module.set_submodule(name, quantized)
        lines.append(line)
    return QuantReport(layers=tuple(lines), kept=tuple(linear_layers(module)))


def missing_data(name: str, linear: nn.Linear, scheme: Scheme, observed: Observed | None) -> str | None:
    """Why the numbers at hand do not let this layer be quantized; None if they do."""
    if linear.weight.is_meta:
        return f"{name} has no weights yet (device meta): load them first"
    if not bool(torch.isfinite(linear.weight).all()):
        return f"{name} holds weights that are not finite, which no scale can represent: repair the checkpoint"
    if observed is None:
        needed = scheme.clip if isinstance(scheme, W4A16) else scheme.static
        return f"{name}: {scheme} needs calibration activations, none were given: pass observed" if needed else None
    if observed.features != linear.in_features:
        return (
            f"{name} reads {linear.in_features} features, its calibration rows have {observed.features}: "
            "observe this very layer"
        )
    return None


@torch.no_grad()
def quantize_linear(
    name: str, linear: nn.Linear, scheme: Scheme, observed: Observed | None = None
) -> tuple[Int4Linear | Int8Linear, LayerReport]:
    """The quantized layer, and what it cost; ``linear`` stays as it is. ``name`` is for the report and errors.

    Raises: ValueError for weights that are not finite or not there, and for calibration rows that are missing
    or of another width.
    """
    if reason := missing_data(name, linear, scheme, observed):
        raise ValueError(reason)
    weight = linear.weight.float()
    if isinstance(scheme, W4A16):
        codes = round_int4(weight, None if observed is None else observed.rows, scheme)
        quantized, approximation = Int4Linear.from_codes(codes, linear.bias), dequantize_int4(codes)
    else:
        x_scale = observed.largest.amax() / INT8_MAX if scheme.static and observed else None
        quantized = Int8Linear.from_linear(linear, x_scale=x_scale)
        approximation = quantized.weight[:, : linear.in_features] * quantized.weight_scale[:, None]
    output_error = None
    if observed is not None:
        rows = observed.rows.float()
        output_error = relative_error(rows @ weight.T, rounded_activations(rows, quantized) @ approximation.T)
    line = LayerReport(
        name=name,
        scheme=scheme,
        weight_error=relative_error(weight, approximation),
        output_error=output_error,
        bytes_before=size(linear),
        bytes_after=size(quantized),
    )
    return quantized.train(linear.training), line


def rounded_activations(rows: Tensor, layer: Int4Linear | Int8Linear) -> Tensor:
    """What the product of ``layer`` sees of the rows ``[r, k]``."""
    if isinstance(layer, Int4Linear):
        return rows
    if layer.x_scale is not None:
        return quantize_int8_static(rows, layer.x_scale) * layer.x_scale
    codes, scale = quantize_int8(rows)
    return codes * scale[:, None]


def relative_error(exact: Tensor, approximation: Tensor) -> float:
    """``|exact - approximation| / |exact|``, Frobenius norms; 0 for two zeros."""
    error, norm = (float(x.square().sum().sqrt()) for x in (exact - approximation, exact))
    return error / norm if norm else error


def size(layer: nn.Module) -> int:
    """Bytes of a layer's parameters and buffers."""
    return sum(tensor.nbytes for tensor in [*layer.parameters(), *layer.buffers()])
