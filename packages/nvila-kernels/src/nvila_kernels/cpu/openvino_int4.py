"""OpenVINO's product with 4-bit weights, which it repacks for its processor.

On processors that have an instruction for sums of 8-bit products, activations become int8 by groups; elsewhere,
or if they may not be rounded, weights become float32 on the way.
"""

from collections.abc import Sequence
from math import gcd
from typing import Any, cast

import torch
from torch import Tensor

from nvila_kernels.cpu import openvino_graph
from nvila_kernels.cpu.kernel import Activations, Codes, Kernel, Run
from nvila_kernels.cpu.matmul_nbits import pairs
from nvila_kernels.cpu.openvino_graph import Graph, operators
from nvila_kernels.quantization import Int4Codes

SMALLEST_BLOCK = 32


def missing() -> str | None:
    """Why 4 bits cannot be multiplied here; None if they can."""
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        return "OpenVINO keeps weights in 4 bits on processors with AVX2 only"
    return openvino_graph.missing()


def product(graph: Graph, x: Any, codes: Int4Codes, bias: Tensor | None = None) -> Any:
    """``x @ weight.T + bias`` in a graph, of nodes.

    Raises: ValueError for groups that do not fill the inputs, or that the runtime cannot cut into blocks.
    """
    n, k, group = codes.out_features, codes.in_features, codes.group_size
    if k % group:
        raise ValueError(f"{k} inputs are not whole groups of {group}")
    if group % SMALLEST_BLOCK:
        raise ValueError(f"groups of {group}; it takes multiples of {SMALLEST_BLOCK}")
    graph.block = gcd(graph.block, group)  # a product of a block is scaled once, by both scales
    ops, groups = operators(), k // group
    values = ops.convert(graph.hold_int4(pairs(codes.codes, k), (n, groups, group)), "f32")
    zero = ops.convert(graph.hold(codes.zero[..., None]), "f32")
    scaled = ops.multiply(ops.subtract(values, zero), graph.hold(codes.scale.float()[..., None]))
    out = ops.matmul(x, ops.reshape(scaled, graph.hold(torch.tensor([n, k])), False), False, True)
    return out if bias is None else ops.add(out, graph.hold(bias.float()))


def join(weights: Sequence[Codes], *, int8_activations: bool) -> Run:
    """One graph that sums the products with some weights of one shape."""
    n, k = weights[0].codes.shape
    graph = Graph()
    x = graph.read("x", (-1, k))
    out, *others = [product(graph, x, cast(Int4Codes, codes)) for codes in weights]
    for other in others:
        out = operators().add(out, other)
    ready = graph.ready(out, [torch.zeros(1, k)], torch.empty(1, n), int8_activations=int8_activations)

    multiply = ready.runner()

    def run(x: Tensor) -> Tensor:
        out = x.new_empty(x.shape[0], n)
        multiply([x], out)
        return out

    return run


def kernel(name: str, activations: Activations) -> Kernel:
    int8 = activations == "int8"
    return Kernel(
        name=name, bits=4, activations=activations, bytes=size, pack=lambda codes: join([codes], int8_activations=int8),
        missing=missing, join=lambda weights: join(weights, int8_activations=int8),
    )  # fmt: skip


def size(n: int, k: int, group: int) -> float:
    """Codes, a float32 scale and a byte of zero point a group."""
    return n * k * (0.5 + 5 / group)


OPENVINO_INT8 = kernel("OpenVINO int8", "int8")
OPENVINO_FLOAT = kernel("OpenVINO", "float32")
INT8_ACTIVATIONS = {OPENVINO_INT8.name: True, OPENVINO_FLOAT.name: False}
"""Whether a kernel of this module rounds activations in a larger graph."""
