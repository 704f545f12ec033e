"""Eight-bit floats: a tensor as numbers of one byte and a factor, and their products.

E4M3 has three bits of mantissa and ends at 448: weights and activations. E5M2 has two and ends at 57344: gradients,
whose range is wide. Values are divided by a factor that brings the largest one to the end of the range. The casts are
``nvila_kernels``': one pass over memory on a GPU, plain torch elsewhere.

Source: Micikevicius et al., "FP8 formats for deep learning" (arXiv 2209.05433).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from nvila_kernels import cast_fp8
from nvila_kernels.ops import fp8 as ops
from nvila_kernels.reference import fp8_scale
from torch import Tensor

E4M3: Final = torch.float8_e4m3fn
E5M2: Final = torch.float8_e5m2

MULTIPLE: Final = 16
"""GPUs multiply FP8 matrices whose inner side is a multiple of this."""


@dataclass(frozen=True, kw_only=True)
class Small:
    """A matrix in eight bits: ``values * scale``.

    Attributes:
        values: ``[m, k]`` in E4M3 or E5M2.
        scale: float32, ``[]`` for the whole or ``[m, 1]`` for each row.
    """

    values: Tensor
    scale: Tensor

    def large(self, dtype: torch.dtype) -> Tensor:
        """The matrix in another format."""
        return (self.values.float() * self.scale).to(dtype)

    @property
    def across(self) -> "Small":
        """The transpose, for a factor of the whole matrix only."""
        return Small(values=self.values.t().contiguous(), scale=self.scale)


def largest(matrix: Tensor) -> Tensor:
    """The largest magnitude: float32 ``[]``."""
    return ops.amax(matrix).reshape(())


def shrink(matrix: Tensor, dtype: torch.dtype, *, rows: bool = False, amax: Tensor | None = None) -> Small:
    """Round a matrix to eight bits.

    Args:
        rows: a factor for each row; excludes ``amax``.
        amax: the magnitude that becomes the end of the range; the largest there is by default. What lies beyond is cut.
    """
    scale = None if amax is None else fp8_scale(amax.reshape(1), dtype)
    values, scale = cast_fp8(matrix, dtype, scale=scale, by_row=rows)
    return Small(values=values, scale=scale if rows else scale.reshape(()))


def shrink_and_measure(matrix: Tensor, dtype: torch.dtype, *, amax: Tensor) -> tuple[Small, Tensor]:
    """As ``shrink`` by a known magnitude, and the ``largest`` there is; the matrix is read once."""
    scale = fp8_scale(amax.reshape(1), dtype)
    values, now = ops.cast_fp8_amax(matrix, scale, dtype)
    return Small(values=values, scale=scale.reshape(())), now.reshape(())


def shrink_across(matrix: Tensor, dtype: torch.dtype, *, amax: Tensor | None = None) -> Small:
    """As ``shrink`` by a factor of the whole, the transpose: ``[m, k] -> [k, m]``, written as it is rounded."""
    scale = fp8_scale((largest(matrix) if amax is None else amax).reshape(1), dtype)
    return Small(values=ops.cast_fp8_transposed(matrix, scale, dtype), scale=scale.reshape(()))


def product(left: Small, right: Small, dtype: torch.dtype) -> Tensor:
    """``left @ right.T``. Shapes: ``[m, k]``, ``[n, k]`` -> ``[m, n]``; factors of both are of the same kind."""
    short = -left.values.shape[1] % MULTIPLE
    a, b = (F.pad(each, (0, short)) if short else each for each in (left.values, right.values))
    scale = right.scale.t() if right.scale.ndim else right.scale
    return torch.ops.aten._scaled_mm(a, b.t(), scale_a=left.scale, scale_b=scale, out_dtype=dtype)


def fits(shape: Sequence[int]) -> bool:
    """Whether a weight of this shape can be multiplied in eight bits on a GPU."""
    return all(side % MULTIPLE == 0 for side in shape)
