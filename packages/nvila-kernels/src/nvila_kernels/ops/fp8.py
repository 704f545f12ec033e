"""float8: casts with a given scale (plain, transposed, or noting the largest absolute value) and with a scale a row;
the scaled product.
"""

import torch
from torch import Tensor

from nvila_kernels.ops.register import register


def _fake_cast(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return x.new_empty(x.shape, dtype=dtype)


def _fake_rows(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=dtype), x.new_empty((x.shape[0],), dtype=torch.float32)


def _fake_transposed(x: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    return x.new_empty((x.shape[1], x.shape[0]), dtype=dtype)


def _fake_cast_amax(x: Tensor, scale: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return _fake_cast(x, scale, dtype), _fake_amax(x)


def _fake_linear(
    x: Tensor, x_scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0]), dtype=dtype)


def _fake_amax(x: Tensor) -> Tensor:
    return x.new_empty((1,), dtype=torch.float32)


cast_fp8 = register("cast_fp8", "(Tensor x, Tensor scale, ScalarType dtype) -> Tensor", _fake_cast)
cast_fp8_rows = register("cast_fp8_rows", "(Tensor x, ScalarType dtype) -> (Tensor, Tensor)", _fake_rows)
cast_fp8_transposed = register(
    "cast_fp8_transposed", "(Tensor x, Tensor scale, ScalarType dtype) -> Tensor", _fake_transposed
)
amax = register("amax", "(Tensor x) -> Tensor", _fake_amax)
cast_fp8_amax = register(
    "cast_fp8_amax", "(Tensor x, Tensor scale, ScalarType dtype) -> (Tensor, Tensor)", _fake_cast_amax
)
fp8_linear = register(
    "fp8_linear",
    "(Tensor x, Tensor x_scale, Tensor weight, Tensor weight_scale, Tensor? bias, ScalarType dtype) -> Tensor",
    _fake_linear,
)
