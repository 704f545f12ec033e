"""4-bit weights, 16-bit activations: the product and the dequantized weight.

Gradients flow to the activations only: ``grad_x = grad @ dequantize(weight)``, which is what adapters on a
frozen quantized model need.
"""

from typing import Any

import torch
from torch import Tensor

from nvila_kernels.ops.register import register


def _fake_linear(
    x: Tensor,
    packed: Tensor,
    scale_zero: Tensor,
    bias: Tensor | None,
    group_size: int,
    scale_dtype: torch.dtype,
    half_accumulate: bool,
) -> Tensor:
    return x.new_empty((x.shape[0], packed.shape[1]))


def _fake_dequantize(
    packed: Tensor,
    scale_zero: Tensor,
    in_features: int,
    group_size: int,
    scale_dtype: torch.dtype,
    dtype: torch.dtype,
) -> Tensor:
    return packed.new_empty((packed.shape[1], in_features), dtype=dtype)


dequantize = register(
    "dequantize",
    "(Tensor packed, Tensor scale_zero, int in_features, int group_size, ScalarType scale_dtype, ScalarType "
    "dtype) -> Tensor",
    _fake_dequantize,
)

w4a16_linear = register(
    "w4a16_linear",
    "(Tensor x, Tensor packed, Tensor scale_zero, Tensor? bias, int group_size, ScalarType scale_dtype, "
    "bool half_accumulate) -> Tensor",
    _fake_linear,
)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, packed, scale_zero, bias, group_size, scale_dtype, _ = inputs
    ctx.save_for_backward(packed, scale_zero)
    ctx.layout = (x.shape[-1], group_size, scale_dtype)
    ctx.bias_dtype = None if bias is None else bias.dtype


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    packed, scale_zero = ctx.saved_tensors
    weight = dequantize(packed, scale_zero, *ctx.layout, grad.dtype)
    grad_x = grad @ weight if ctx.needs_input_grad[0] else None
    grad_bias = grad.sum(0).to(ctx.bias_dtype) if ctx.needs_input_grad[3] else None
    return grad_x, None, None, grad_bias, None, None, None


w4a16_linear.register_autograd(_backward, setup_context=_save)
