"""A 4-bit weight as one stream, in the order in which a product reads it.

For each block of 64 outputs, for each group of inputs: the codes of eight inputs after the other, 256 bytes each, then
64 scales and 64 zero points. Four bytes belong to an output: the first four of eight inputs in their low halves, the
last four in their high ones, so that one mask and one shift give the operands of an instruction that sums four
products. 128 inputs of 64 outputs take 67 lines of the processor's cache, and none is left half empty.

``codes (b 64) (g o 2 4) -> lines b g o 64 4``
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from nvila_kernels.cpu.arena import Arena
from nvila_kernels.quantization import Int4Codes

OUTPUTS = 64
"""Outputs of a block."""
OCTET = 8
"""Inputs whose codes lie next to each other."""
SMALLEST = 4 * OCTET
"""Groups are so many inputs, or a multiple of that."""
TAIL = 3 * OUTPUTS
"""Bytes after the codes of a group: scales of 16 bits, zero points of 8."""
SOME = 2**22
"""Codes that are packed at a time."""
LARGEST = 2.0**14
"""The largest scale of a weight becomes less than twice this, so that small ones keep their bits in float16."""


@dataclass(frozen=True, kw_only=True)
class Weight:
    """A packed weight.

    Attributes:
        stream: uint8, from an address that 64 divides.
        outputs, inputs: of the product.
        group: inputs that share a scale.
        factor: by which stored scales are to be multiplied.
    """

    stream: Tensor
    outputs: int
    inputs: int
    group: int
    factor: float

    @property
    def groups(self) -> int:
        """Of an output, the last one filled up."""
        return -(-self.inputs // self.group)


def stride(group: int) -> int:
    """Bytes that a group of inputs takes in a block."""
    return group * OUTPUTS // 2 + TAIL


def size(n: int, k: int, group: int) -> int:
    """Bytes of a packed weight."""
    return -(-n // OUTPUTS) * -(-k // group) * stride(group)


def pack(codes: Int4Codes, arena: Arena) -> Weight:
    """Outputs are filled up with zeros to whole blocks, inputs to whole groups.

    Raises: ValueError for groups that are no multiple of 32 inputs.
    """
    n, k, group = codes.out_features, codes.in_features, codes.group_size
    if group % SMALLEST:
        raise ValueError(f"groups of {group}; it takes multiples of {SMALLEST}")
    blocks, groups = -(-n // OUTPUTS), -(-k // group)
    stream = arena.take(size(n, k, group))
    lines = stream.view(blocks, groups, stride(group))
    largest = float(codes.scale.abs().max())
    factor = 2.0 ** math.floor(math.log2(largest / LARGEST)) if 0 < largest < math.inf else 1.0
    some = max(1, SOME // (OUTPUTS * groups * group))
    for first in range(0, blocks, some):
        rows = slice(first * OUTPUTS, (first + some) * OUTPUTS)
        values = (
            filled(codes.codes[rows], groups * group).view(torch.int32).view(-1, OUTPUTS, groups, group // OCTET, 2)
        )
        halves = values[..., 0] | values[..., 1] << 4
        part = lines[first : first + some]
        part[..., :-TAIL].view(torch.int32).copy_(halves.permute(0, 2, 3, 1).flatten(2))
        scale = filled(codes.scale[rows].float() / factor, groups).half().view(-1, OUTPUTS, groups)
        part[..., -TAIL:-OUTPUTS].view(torch.float16).copy_(scale.transpose(1, 2))
        part[..., -OUTPUTS:].copy_(filled(codes.zero[rows], groups).view(-1, OUTPUTS, groups).transpose(1, 2))
    return Weight(stream=stream, outputs=n, inputs=k, group=group, factor=factor)


def filled(values: Tensor, columns: int) -> Tensor:
    """Zeros below and to the right up to whole blocks of rows and so many columns."""
    rows = -(-len(values) // OUTPUTS) * OUTPUTS
    if values.shape == (rows, columns):
        return values.contiguous()
    out = values.new_zeros(rows, columns)
    out[: len(values), : values.shape[1]] = values
    return out
