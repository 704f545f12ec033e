"""A packed copy of a weight of floats, which stays as it is."""

from collections.abc import Iterable

import torch
from torch import Tensor

from nvila_kernels.cpu.packed_linear import PackedLinear, fastest, pack
from nvila_kernels.cpu.shape import PHASES, Phase, shape_of_codes
from nvila_kernels.quantization import Int4Codes, quantize_int4

ROWS = 4096
"""Rows that are held as floats at a time: the vocabulary of an output head takes gigabytes."""


@torch.no_grad()
def packed_copy(
    weight: Tensor, *, group_size: int, phases: Iterable[Phase] = PHASES, int8_activations: bool = True
) -> PackedLinear:
    """A layer that multiplies by a weight rounded to 4 bits.

    Args:
        weight: ``[n, k]`` of any float type.
        group_size: inputs that share a scale, at most all.
        phases, int8_activations: as for ``optimize_``.
    """
    outputs, inputs = weight.shape
    group = min(group_size, inputs)
    groups = -(-inputs // group)
    codes = Int4Codes(
        codes=torch.empty(outputs, inputs, dtype=torch.uint8),
        scale=torch.empty(outputs, groups, dtype=torch.float16),
        zero=torch.empty(outputs, groups, dtype=torch.uint8),
        group_size=group,
    )
    for start in range(0, outputs, ROWS):
        some = slice(start, start + ROWS)
        part = quantize_int4(weight[some].float(), group_size=group)
        codes.codes[some], codes.scale[some], codes.zero[some] = part.codes, part.scale, part.zero
    choice = fastest(shape_of_codes(codes), phases=phases, int8_activations=int8_activations)
    return PackedLinear(pack(codes, choice), bias=None)
