"""TinyChat's second layout, for the GPU kernels of the AWQ authors.

``qweight`` int16 ``[n / 4, k]``: inside each 32 inputs, first ``(a b c) -> (b a c)`` with sizes 4, 4, 2, then in every
eight the even ones before the odd ones; then four rows are interleaved 64 inputs at a time, one nibble of a word each.
``scales`` and ``scaled_zeros`` float16 ``[k / g or more, n]``, the latter ``-scale * zero``.
"""

from dataclasses import dataclass

import torch
from einops import rearrange

from nvila_kernels.formats.layer import FormatError, Tensors
from nvila_kernels.quantization import Int4Codes

STRIDE = 64
"""Inputs of a row that lie together."""


@dataclass(frozen=True, kw_only=True)
class TinyChat:
    """Read only.

    Args:
        group_size: input features that share a scale, since the padded scales do not tell.
    """

    group_size: int = 128
    names: tuple[str, ...] = ("scaled_zeros", "qweight", "scales")
    optional: tuple[str, ...] = ()

    def read(self, tensors: Tensors) -> Int4Codes:
        words, scales, scaled = tensors["qweight"], tensors["scales"], tensors["scaled_zeros"]
        k = words.shape[1]
        if words.dtype != torch.int16 or k % STRIDE or k % self.group_size:
            raise FormatError(
                f"qweight is {words.dtype} with {k} inputs: TinyChat's second layout has int16 and multiples of "
                f"{STRIDE} and of the group of {self.group_size}"
            )
        groups = k // self.group_size
        if scales.shape != scaled.shape or len(scales) < groups:
            raise FormatError(
                f"scales {list(scales.shape)} and scaled_zeros {list(scaled.shape)} do not hold {groups} groups: "
                "check group_size"
            )
        pairs = words.contiguous().unsqueeze(-1).view(torch.uint8)
        nibbles = rearrange(torch.stack((pairs & 15, pairs >> 4), dim=-1), "n k pair two -> n (k pair two)")
        rows = rearrange(nibbles, "n (b s i) -> (n i) (b s)", s=STRIDE, i=4)
        evens_first = rearrange(rows, "n (b odd half) -> n (b half odd)", odd=2, half=4)
        codes = rearrange(evens_first, "n (g b a c) -> n (g a b c)", a=4, b=4, c=2)
        scale, shift = scales[:groups].T.float(), scaled[:groups].T.float()
        zero = torch.where(scale == 0, torch.zeros_like(scale), -shift / scale).round()
        if bool((zero < 0).any()) or bool((zero > 15).any()):
            raise FormatError(f"scaled_zeros stand for zero points {zero.min():.0f}..{zero.max():.0f}, not 0..15")
        return Int4Codes(
            codes=codes.contiguous(),
            scale=scales[:groups].T.contiguous(),
            zero=zero.to(torch.uint8),
            group_size=self.group_size,
        )
