"""Quantize the linear layers of any module in place, and say what it cost.

A whole model takes one call, ``quantize_``. A model that does not fit in memory takes the same steps apart:
``QuantPolicy.assign`` on the ``meta`` device, then ``replace_`` on each block as its weights arrive.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from nvila_kernels.calibrate.clip import round_int4
from nvila_kernels.calibrate.observe import Observed
from nvila_kernels.modules import Int4Linear, Int8Linear
from nvila_kernels.policy import W4A16, QuantPolicy, Scheme, linear_layers, refuse, usual_policy
from nvila_kernels.quantization import INT8_MAX, dequantize_int4, quantize_int8, quantize_int8_static
from nvila_kernels.report import FloatParameter, LayerReport, QuantReport, float_parameters

__all__ = [
    "FloatParameter",
    "LayerReport",
    "QuantReport",
    "float_parameters",
    "quantize_",
    "quantize_linear",
    "replace_",
]


def quantize_(
    module: nn.Module, policy: QuantPolicy | Scheme | None = None, *, observed: Mapping[str, Observed] | None = None
) -> QuantReport:
    """Replace linear layers by quantized ones, in place.

    Args:
        module: anything that holds ``torch.nn.Linear`` layers of float32, float16 or bfloat16.
        policy: which of them become what. A scheme is for all but output heads
            (:func:`~nvila_kernels.policy.usual_policy`); ``W4A16(symmetric=True)`` by default, which most read.
        observed: calibration activations by layer name, as :func:`nvila_kernels.calibrate.observe` gives
            them; needed for static scales and clipping, and for output errors in the report.

    Returns: what became of each layer, and every parameter that stays float: among them weights of layers that are no
        ``torch.nn.Linear``, such as GPT-2's ``Conv1D`` or the stacked experts of a mixture.
    Raises: ValueError naming every layer that cannot be quantized; the module is then unchanged.

    >>> model = nn.Sequential(nn.Linear(256, 64), nn.GELU(), nn.Linear(64, 8))
    >>> report = quantize_(model, QuantPolicy((("2", None), ("*", W4A16()))))
    >>> type(model[0]).__name__, report.kept
    ('Int4Linear', ('2',))
    """
    if not isinstance(policy, QuantPolicy):
        policy = usual_policy(module, W4A16(symmetric=True) if policy is None else policy)
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
    return QuantReport(layers=tuple(lines), kept=tuple(linear_layers(module)), floats=float_parameters(module))


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
        quantized.accumulate = getattr(torch, scheme.accumulate)
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
