"""The signature of every operation, once.

A function here holds an operation's name, arguments, types, and the shapes of its results: it is what runs on tensors
without data (fake, meta), and its annotations are the schema of the ``torch.library`` op (``ops``). A backend has a
function of the same name with the same arguments, in the same order; the tests hold each backend to that.

Letters in shapes: ``m`` rows (tokens), ``k`` input features, ``n`` output features, ``k'`` and ``n'`` the same padded
with zeros to a multiple of 128.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from nvila_kernels.quantization import padded_features

Operation = TypeVar("Operation", bound=Callable[..., Any])

OPERATIONS: dict[str, Callable[..., Any]] = {}
"""Every operation by name."""


def operation(signature: Operation) -> Operation:
    """Enter a function into ``OPERATIONS``."""
    OPERATIONS[signature.__name__] = signature
    return signature


@operation
def dequantize(
    packed: Tensor,
    scale_zero: Tensor,
    in_features: int,
    group_size: int,
    scale_dtype: torch.dtype,
    dtype: torch.dtype,
) -> Tensor:
    """``scale * (code - zero)`` in ``dtype``: int16 ``[k'/128, n, 32]``, int32 ``[groups, n]`` -> ``[n, k]``."""
    return packed.new_empty((packed.shape[1], in_features), dtype=dtype)


@operation
def w4a16_linear(
    x: Tensor,
    packed: Tensor,
    scale_zero: Tensor,
    bias: Tensor | None,
    group_size: int,
    scale_dtype: torch.dtype,
    half_accumulate: bool,
) -> Tensor:
    """``x @ dequantize(weight).T + bias``: ``[m, k] -> [m, n]`` of ``x.dtype``.

    ``half_accumulate`` sums each group in float16, on kernels that can.
    """
    return x.new_empty((x.shape[0], packed.shape[1]))


@operation
def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """One scale a row: int8 ``[m, k']``, float32 ``[m]``."""
    return padded_codes(x), x.new_empty((x.shape[0],), dtype=torch.float32)


@operation
def quantize_static(x: Tensor, scale: Tensor) -> Tensor:
    """One scale for all, float32 ``[1]``: int8 ``[m, k']``."""
    return padded_codes(x)


def padded_codes(x: Tensor) -> Tensor:
    return x.new_empty((x.shape[0], padded_features(x.shape[1])), dtype=torch.int8)


@operation
def gelu_quantize(x: Tensor) -> tuple[Tensor, Tensor]:
    """``quantize_rows(gelu_tanh(x))``."""
    return quantize_rows(x)


@operation
def layer_norm_quantize(x: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """``quantize_rows(layer_norm(x))``."""
    return quantize_rows(x)


@operation
def int8_linear(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    gelu: bool,
    dtype: torch.dtype,
) -> Tensor:
    """``(x @ weight.T) * x_scale * weight_scale + bias``, then GELU (tanh) if asked: int8 ``[m, k']`` and ``[n, k']``
    -> ``[m, n]`` of ``dtype``. Scales are float32: ``x_scale`` is ``[m]`` or ``[1]``, ``weight_scale`` ``[n]``.
    """
    return x.new_empty((x.shape[0], weight.shape[0]), dtype=dtype)


@operation
def int8_linear_requantize(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    gelu: bool,
    out_scale: Tensor,
) -> Tensor:
    """:func:`int8_linear`, then :func:`quantize_static` by ``out_scale``: int8 ``[m, n']``."""
    return x.new_empty((x.shape[0], padded_features(weight.shape[0])), dtype=torch.int8)


@operation
def cast_fp8(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """``clamp(x * (1 / scale))`` in a float8 type: ``[m, k]`` of it; ``scale`` is float32, ``[1]`` or ``[m]``."""
    return x.new_empty(x.shape, dtype=dtype)


@operation
def cast_fp8_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Each row by its own largest value: codes ``[m, k]``, float32 scales ``[m]``."""
    return x.new_empty(x.shape, dtype=dtype), x.new_empty((x.shape[0],), dtype=torch.float32)


@operation
def cast_fp8_transposed(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """:func:`cast_fp8` with one scale for all, written as a contiguous ``[k, m]``: what a backward product reads."""
    return x.new_empty((x.shape[1], x.shape[0]), dtype=dtype)


@operation
def cast_fp8_amax(x: Tensor, scale: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """:func:`cast_fp8` and :func:`amax` of the same tensor: what delayed scaling needs."""
    return cast_fp8(x, scale, dtype), amax(x)


@operation
def amax(x: Tensor) -> Tensor:
    """``max|x|`` as float32 ``[1]``; 0 of nothing."""
    return x.new_empty((1,), dtype=torch.float32)


@operation
def fp8_linear(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """``(x @ weight.T) * x_scale * weight_scale + bias``, summed in float32: float8 ``[m, k]`` and ``[n, k]`` ->
    ``[m, n]`` of ``dtype``. Scales are float32, ``[1]`` or one a row of their operand.
    """
    return x.new_empty((x.shape[0], weight.shape[0]), dtype=dtype)
