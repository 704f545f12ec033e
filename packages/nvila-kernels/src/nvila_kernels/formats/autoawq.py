"""AutoAWQ's two layouts of 4-bit weights.

``gemm``  ``qweight`` int32 ``[k, n / 8]`` and ``qzeros`` int32 ``[k / g, n / 8]``, packed along the outputs in the
order 0 2 4 6 1 3 5 7; ``scales`` float16 ``[k / g, n]``

``gemv``  ``qweight`` int32 ``[n, k / 8]`` in natural order; ``qzeros`` int32 ``[n, w]`` and ``scales`` float16
``[n, 8 w]``, where ``8 w >= k / g`` is what its kernel likes to read
"""

from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

from nvila_kernels.formats.layer import FormatError, Tensors, group_of, half, shapes_agree
from nvila_kernels.formats.words import AWQ, PER_WORD, pack_words, unpack_columns, unpack_words
from nvila_kernels.quantization import Int4Codes

NAMES: Final = ("qweight", "qzeros", "scales")


@dataclass(frozen=True, kw_only=True)
class AwqGemm:
    """The ``gemm`` layout, the one that others read too.

    Args:
        group_size: input features that share a scale, for the configuration; -1 for a whole row.
    """

    group_size: int = 128
    names: tuple[str, ...] = NAMES
    optional: tuple[str, ...] = ()

    def read(self, tensors: Tensors) -> Int4Codes:
        codes = unpack_columns(tensors["qweight"], AWQ)
        zeros, scales = unpack_columns(tensors["qzeros"], AWQ), tensors["scales"]
        n, k = codes.shape
        group = group_of(k, len(scales))
        shapes_agree("scales", scales, (k // group, n))
        shapes_agree("qzeros", zeros.T, tuple(scales.shape))
        return Int4Codes(codes=codes, scale=scales.T.contiguous(), zero=zeros, group_size=group)

    def write(self, weight: Int4Codes) -> dict[str, Tensor]:
        n, k = weight.codes.shape
        if n % PER_WORD or k % weight.group_size:
            raise FormatError(
                f"AutoAWQ cannot hold {n} outputs and {k} inputs in groups of {weight.group_size}: outputs must be a "
                f"multiple of {PER_WORD} and inputs of the group"
            )
        return {
            "qweight": pack_words(weight.codes.T, AWQ),
            "qzeros": pack_words(weight.zero.T, AWQ),
            "scales": half(weight.scale).T.contiguous(),
        }

    def config(self, *, skipped: tuple[str, ...] = ()) -> dict[str, Any]:
        found = {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": self.group_size, "zero_point": True}
        return {**found, "modules_to_not_convert": list(skipped) or None}


@dataclass(frozen=True, kw_only=True)
class AwqGemv:
    """The ``gemv`` layout, read only.

    Args:
        group_size: input features that share a scale, since the padded scales do not tell; -1 for a whole row.
    """

    group_size: int
    names: tuple[str, ...] = NAMES
    optional: tuple[str, ...] = ()

    def read(self, tensors: Tensors) -> Int4Codes:
        codes, zeros, scales = unpack_words(tensors["qweight"]), unpack_words(tensors["qzeros"]), tensors["scales"]
        k = codes.shape[1]
        group = self.group_size if self.group_size > 0 else k
        if k % group or scales.shape[1] < k // group or zeros.shape[1] < k // group:
            raise FormatError(
                f"{k} inputs in groups of {group} do not fit scales of shape {list(scales.shape)}: check group_size"
            )
        return Int4Codes(
            codes=codes,
            scale=scales[:, : k // group].contiguous(),
            zero=zeros[:, : k // group].contiguous(),
            group_size=group,
        )
