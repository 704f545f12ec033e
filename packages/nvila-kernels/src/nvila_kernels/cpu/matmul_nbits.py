"""onnxruntime's ``MatMulNBits``: 4-bit weights, which the runtime repacks for its processor.

With accuracy level 4 activations become int8 in blocks of the group's size; with level 1 they stay float32.
"""

from typing import cast

import torch
from torch import Tensor

from nvila_kernels.cpu.kernel import Activations, Codes, Kernel, Run
from nvila_kernels.cpu.onnx_graph import CONTRIBUTED, Graph, missing
from nvila_kernels.quantization import Int4Codes

SMALLEST_BLOCK = 16


def add_weight(graph: Graph, x: str, codes: Int4Codes, accuracy: int, bias: Tensor | None = None) -> str:
    """``x @ weight.T + bias`` in a graph. Raises: ValueError for groups that are no power of two."""
    n, k, group = codes.out_features, codes.in_features, codes.group_size
    if group < SMALLEST_BLOCK or group & (group - 1):
        raise ValueError(f"groups of {group}; it takes powers of two from {SMALLEST_BLOCK}")
    groups = -(-k // group)
    values = pairs(codes.codes, groups * group).reshape(n, groups, group // 2)
    held = (values, codes.scale.float().flatten(), pairs(codes.zero, groups + groups % 2).flatten())
    added = () if bias is None else ("", graph.hold(bias.float()))  # no order of groups before it
    return graph.add(
        "MatMulNBits", x, *map(graph.hold, held), *added, domain=CONTRIBUTED,
        K=k, N=n, bits=4, block_size=group, accuracy_level=accuracy,
    )  # fmt: skip


def pairs(values: Tensor, width: int) -> Tensor:
    """Two 4-bit values a byte, the first in its lower half; zeros up to an even width."""
    if values.shape[1] < width:
        values = torch.nn.functional.pad(values, (0, width - values.shape[1]))
    return (values[:, 1::2] << 4).bitwise_or_(values[:, 0::2])


def pack(codes: Codes, accuracy: int) -> Run:
    """A graph of one product."""
    n, k = codes.codes.shape
    with Graph() as graph:
        result = add_weight(graph, graph.read("x", ["rows", k]), cast(Int4Codes, codes), accuracy)
        ready = graph.ready({result: ["rows", n]})

    def run(x: Tensor) -> Tensor:
        out = x.new_empty(x.shape[0], n)
        ready({"x": x}, {result: out})
        return out

    return run


def kernel(name: str, activations: Activations, accuracy: int) -> Kernel:
    return Kernel(
        name=name, bits=4, activations=activations, bytes=size, missing=missing,
        pack=lambda codes: pack(codes, accuracy),
    )  # fmt: skip


def size(n: int, k: int, group: int) -> float:
    """Codes, a float32 scale and sum a group, half a byte of zero point."""
    return n * k * (0.5 + 8.5 / group)


NBITS_INT8 = kernel("onnxruntime MatMulNBits int8", "int8", 4)
NBITS_FLOAT = kernel("onnxruntime MatMulNBits", "float32", 1)
ACCURACY = {NBITS_INT8.name: 4, NBITS_FLOAT.name: 1}
"""The accuracy level by which a kernel of this module stands in a larger graph."""
