"""8-bit weights and activations: quantize (alone or behind a norm or GELU), multiply, quantize again.

Inference only: no gradients. Results of ``quantize_*`` are padded with zeros to a multiple of 128 features.
"""

import torch
from torch import Tensor

from nvila_kernels.ops.register import register
from nvila_kernels.quantization import padded_features


def _fake_codes(x: Tensor, *_: object) -> Tensor:
    return x.new_empty((x.shape[0], padded_features(x.shape[1])), dtype=torch.int8)


def _fake_rows(x: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return _fake_codes(x), x.new_empty((x.shape[0],), dtype=torch.float32)


def _fake_linear(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    gelu: bool,
    dtype: torch.dtype,
) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0]), dtype=dtype)


def _fake_requantize(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    gelu: bool,
    out_scale: Tensor,
) -> Tensor:
    return x.new_empty((x.shape[0], padded_features(weight.shape[0])))


quantize_rows = register("quantize_rows", "(Tensor x) -> (Tensor, Tensor)", _fake_rows)
quantize_static = register("quantize_static", "(Tensor x, Tensor scale) -> Tensor", _fake_codes)
gelu_quantize = register("gelu_quantize", "(Tensor x) -> (Tensor, Tensor)", _fake_rows)
layer_norm_quantize = register(
    "layer_norm_quantize",
    "(Tensor x, Tensor weight, Tensor bias, float epsilon) -> (Tensor, Tensor)",
    _fake_rows,
)
int8_linear = register(
    "int8_linear",
    "(Tensor x, Tensor x_scale, Tensor weight, Tensor weight_scale, Tensor? bias, bool gelu, ScalarType "
    "dtype) -> Tensor",
    _fake_linear,
)
int8_linear_requantize = register(
    "int8_linear_requantize",
    "(Tensor x, Tensor x_scale, Tensor weight, Tensor weight_scale, Tensor? bias, bool gelu, Tensor "
    "out_scale) -> Tensor",
    _fake_requantize,
)
