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
from nvila_kernels import cast_fp8, cast_fp8_transposed, fp8_linear
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


def shrink(matrix: Tensor, dtype: torch.dtype, *, rows: bool = False) -> Small:
    """Round a matrix to eight bits by its own largest magnitude, or by that of each row."""
    values, scale = cast_fp8(matrix, dtype, by_row=rows)
    return Small(values=values, scale=scale if rows else scale.reshape(()))


def shrink_across(matrix: Tensor, dtype: torch.dtype, *, scale: Tensor | None = None) -> Small:
    """Round by a factor of the whole, the transpose: ``[m, k] -> [k, m]``, written as it is rounded.

    Args:
        scale: the factor, float32 ``[1]``; that of the matrix itself by default. What lies beyond is cut.
    """
    values, scale = cast_fp8_transposed(matrix, dtype, scale=scale)
    return Small(values=values, scale=scale.reshape(()))


def product(left: Small, right: Small, dtype: torch.dtype) -> Tensor:
    """``left @ right.T`` by torch, factors of both of the same kind. Shapes: ``[m, k]``, ``[n, k]`` -> ``[m, n]``."""
    short = -left.values.shape[1] % MULTIPLE
    a, b = (F.pad(each, (0, short)) if short else each for each in (left.values, right.values))
    scale = right.scale.t() if right.scale.ndim else right.scale
    return torch.ops.aten._scaled_mm(a, b.t(), scale_a=left.scale, scale_b=scale, out_dtype=dtype)


def nvila_product(left: Small, right: Small, dtype: torch.dtype) -> Tensor:
    """As ``product``, by ``nvila_kernels``: its Triton kernel on a GPU, its reference elsewhere."""
    return fp8_linear(left.values, left.scale, right.values, right.scale, dtype=dtype)


PRODUCTS: Final = {"torch": product, "nvila": nvila_product}
"""By the backend of a ``Precision``."""


def fits(shape: Sequence[int]) -> bool:
    """Whether a weight of this shape can be multiplied in eight bits on a GPU."""
    return all(side % MULTIPLE == 0 for side in shape)
