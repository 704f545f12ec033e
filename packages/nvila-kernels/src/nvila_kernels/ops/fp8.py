"""Casts to float8: with a given scale, with a scale a row, and transposed; and the largest absolute value.

The scaled product itself is torch's (``torch._scaled_mm``), which runs on the CPU too.
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


def _fake_amax(x: Tensor) -> Tensor:
    return x.new_empty((1,), dtype=torch.float32)


cast_fp8 = register("cast_fp8", "(Tensor x, Tensor scale, ScalarType dtype) -> Tensor", _fake_cast)
cast_fp8_rows = register("cast_fp8_rows", "(Tensor x, ScalarType dtype) -> (Tensor, Tensor)", _fake_rows)
cast_fp8_transposed = register(
    "cast_fp8_transposed", "(Tensor x, Tensor scale, ScalarType dtype) -> Tensor", _fake_transposed
)
amax = register("amax", "(Tensor x) -> Tensor", _fake_amax)
