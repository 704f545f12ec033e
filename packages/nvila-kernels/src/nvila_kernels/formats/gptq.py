"""GPTQ's layout: ``qweight`` int32 ``[k / 8, n]`` packed along the inputs, ``qzeros`` int32 ``[k / g, n / 8]`` along
the outputs, ``scales`` float16 ``[k / g, n]`` and ``g_idx`` int32 ``[k]``, the group of each input.

Version 1 stores zero points less one, version 2 as they are.
"""

from dataclasses import dataclass

import torch

from nvila_kernels.formats.layer import FormatError, Tensors, group_of, shapes_agree
from nvila_kernels.formats.words import unpack_words
from nvila_kernels.quantization import Int4Codes


@dataclass(frozen=True, kw_only=True)
class Gptq:
    """Read only.

    Args:
        version: 1 (``gptq``) or 2 (``gptq_v2``).
    """

    version: int = 1
    names: tuple[str, ...] = ("qweight", "qzeros", "scales")
    optional: tuple[str, ...] = ("g_idx",)

    def read(self, tensors: Tensors) -> Int4Codes:
        codes = unpack_words(tensors["qweight"].T.contiguous())
        zeros, scales = unpack_words(tensors["qzeros"]), tensors["scales"]
        group = group_of(codes.shape[1], len(scales))
        shapes_agree("scales", scales, (codes.shape[1] // group, len(codes)))
        shapes_agree("qzeros", zeros, tuple(scales.shape))
        order = tensors.get("g_idx")
        if order is not None and not torch.equal(order.long(), torch.arange(codes.shape[1]) // group):
            raise FormatError(
                "g_idx puts inputs into groups by activation order, which the kernels cannot read: use a checkpoint "
                "quantized with desc_act=false"
            )
        if self.version == 1:
            # 15 + 1 does not fit four bits; kernels that read this layout use 16, and so do ours.
            zeros = zeros + 1
        return Int4Codes(
            codes=codes, scale=scales.T.contiguous(), zero=zeros.T.contiguous().to(torch.uint8), group_size=group
        )
