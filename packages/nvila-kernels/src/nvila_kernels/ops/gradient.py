"""The gradient of the 4-bit product, to the activations only: ``grad_x = grad @ dequantize(weight)``.

It is what adapters on a frozen quantized model need. The other operations have none.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor


def add_gradient(w4a16_linear: Any, dequantize: Callable[..., Tensor]) -> None:
    """Register the backward pass of ``w4a16_linear``, which reads the weight by ``dequantize``."""

    def save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, packed, scale_zero, bias, group_size, scale_dtype, _ = inputs
        ctx.save_for_backward(packed, scale_zero)
        ctx.layout = (x.shape[-1], group_size, scale_dtype)
        ctx.bias_dtype = None if bias is None else bias.dtype

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        weight = dequantize(*ctx.saved_tensors, *ctx.layout, grad.dtype)
        grad_x = grad @ weight if ctx.needs_input_grad[0] else None
        grad_bias = grad.sum(0).to(ctx.bias_dtype) if ctx.needs_input_grad[3] else None
        return grad_x, None, None, grad_bias, None, None, None

    w4a16_linear.register_autograd(backward, setup_context=save)
