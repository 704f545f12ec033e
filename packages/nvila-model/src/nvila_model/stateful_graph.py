"""Blocks of 4 bits and the norm behind them as operators of OpenVINO, keys and values as state of the graph.

The runtime finds rotary positions, normalization, and attention with its state in what stands here, and has an operator
of its own for each.
"""

from __future__ import annotations

from typing import Any, Self

import torch
from nvila_kernels import Int4Linear
from nvila_kernels.cpu import Choice, SettledModule
from nvila_kernels.cpu.openvino_graph import Graph, ReadyGraph, operators
from nvila_kernels.cpu.openvino_int4 import INT8_ACTIVATIONS, product
from nvila_kernels.cpu.prepared import Prepared
from nvila_kernels.cpu.shape import PHASES
from torch import Tensor

from nvila_model.block_graph import Parts, codes_of, packed_bytes
from nvila_model.qwen2 import Qwen2, RMSNorm, rotary_frequencies
from nvila_model.states import POSITIONS, request_of


class Blocks:
    """All blocks as one graph."""

    def __init__(self, ready: ReadyGraph) -> None:
        self.ready = ready

    def __call__(self, x: Tensor, *given: Tensor) -> Tensor:
        """What ``StatefulGraph`` reads, then the number of the states -> ``[n, width]``."""
        *others, kept, number = given
        out = torch.empty(len(kept), x.shape[-1])
        request_of(number, self.ready)([x, *others, kept], out)
        return out

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self  # as for ``Prepared``


class SettledBlocks(SettledModule):
    """All blocks in the packing of this machine's kernels."""

    def __init__(self, blocks: Blocks, choice: Choice) -> None:
        super().__init__(Prepared(blocks, choice))
        self.blocks = blocks


class StatefulGraph:
    """Blocks that become one graph.

    It reads states ``[b, t, width]``, positions int64 ``[b, t]``, what is added to the scores
    ``[b or 1, 1, t, filled]``, the rows of what is kept, int32 ``[b]``, and the positions that are asked for, int64
    ``[n]``.

    Args:
        graph: empty.
        llm: whose blocks they are.
        heads: of attention.
        kernel: that multiplies.
    """

    def __init__(self, graph: Graph, llm: Qwen2, *, heads: int, kernel: str) -> None:
        self.graph, self.ops, self.kernel = graph, operators(), kernel
        self.width = len(llm.norm.weight)
        self.heads, self.kv_heads, self.head_dim = heads, llm.kv_heads, llm.head_dim
        self.x = graph.read("x", (-1, -1, self.width))
        places = graph.read("places", (-1, -1), torch.int64)
        self.added = graph.read("added", (-1, 1, -1, -1))
        self.rows = graph.read("rows", (-1,), torch.int32)
        self.asked = graph.read("asked", (-1,), torch.int64)
        frequencies = rotary_frequencies(head_dim=llm.head_dim, theta=llm.rope_theta, factor=llm.rope_factor)
        columns = self.ops.convert(self.ops.unsqueeze(places, self.numbers(1, 3)), "f32")
        angles = self.ops.multiply(columns, graph.hold(frequencies.repeat(2)[None, None, None]))
        self.cos, self.sin = self.ops.cos(angles), self.ops.sin(angles)
        batch = self.ops.gather(self.ops.shape_of(self.x), self.numbers(0), self.number(0))
        nothing = self.ops.concat([batch, self.numbers(self.kv_heads, 0, self.head_dim)], 0)
        self.nothing = self.ops.broadcast(graph.hold(torch.zeros(())), nothing)
        self.depth = 0
        self.bytes = 0.0

    def append(self, block: Parts, *, norm: RMSNorm | None = None) -> None:
        """Another block behind those that are there; its weights are copied.

        Args:
            norm: behind the last block of all. Nobody looks at its states but at those that are asked for.
        """
        self.bytes += sum(packed_bytes(self.kernel, layer) for layer in block.layers)
        attended, x = self.attention(block), self.x
        if norm is not None:
            attended, x = self.asked_for(attended, self.heads * self.head_dim), self.asked_for(x, self.width)
        x = self.ops.add(self.product(attended, block.o), x)
        gated = self.gated(self.product(self.normed(x, block.mlp_norm), block.gate_up))
        x = self.ops.add(self.product(gated, block.down), x)
        self.x = x if norm is None else self.ops.squeeze(self.normed(x, norm), self.numbers(0))
        self.depth += 1

    def gated(self, joined: Any) -> Any:
        """``silu(gate) * up`` of both side by side.

        They are one product, since each has a cost of its own, and the runtime would take SiLU into that of the gate,
        where it is slower. Of the ways to take them apart again a transposition is the fastest for a token.
        """
        ops = self.ops
        apart = ops.transpose(ops.reshape(joined, self.numbers(0, 0, 2, -1), True), self.numbers(2, 0, 1, 3))
        gate, up = (ops.squeeze(half, self.numbers(0)) for half in ops.split(apart, self.number(0), 2).outputs())
        return ops.multiply(ops.swish(gate), up)

    def attention(self, block: Parts) -> Any:
        """What the heads give, side by side."""
        ops, dim = self.ops, self.head_dim
        joined = self.product(self.normed(self.x, block.attention_norm), block.qkv)
        sizes = self.numbers(self.heads * dim, self.kv_heads * dim, self.kv_heads * dim)
        queries, keys, values = ops.variadic_split(joined, self.number(2), sizes).outputs()
        q = self.rotated(self.headed(queries, self.heads))
        k = self.stored("keys", self.rotated(self.headed(keys, self.kv_heads)))
        v = self.stored("values", self.headed(values, self.kv_heads))
        scale = self.graph.hold(torch.tensor(dim**-0.5))
        attended = ops.scaled_dot_product_attention(q, k, v, self.added, scale)
        together = ops.transpose(attended, self.numbers(0, 2, 1, 3))
        return ops.reshape(together, self.numbers(0, 0, self.heads * dim), True)

    def headed(self, x: Any, heads: int) -> Any:
        """``[b, t, heads * d]`` -> ``[b, heads, t, d]``."""
        apart = self.ops.reshape(x, self.numbers(0, 0, heads, self.head_dim), True)
        return self.ops.transpose(apart, self.numbers(0, 2, 1, 3))

    def rotated(self, x: Any) -> Any:
        ops, half = self.ops, self.head_dim // 2
        edges = ((0, half), (half, self.head_dim))
        first, second = (ops.slice(x, *map(self.numbers, (start, end, 1, 3))) for start, end in edges)
        turned = ops.concat([ops.multiply(second, self.graph.hold(torch.tensor(-1.0))), first], -1)
        return ops.add(ops.multiply(x, self.cos), ops.multiply(turned, self.sin))

    def stored(self, kind: str, new: Any) -> Any:
        """What is kept so far and this behind it, for all query heads; kept for the next run."""
        ops, name = self.ops, f"{kind}{self.depth}"
        kept = self.graph.recall(name, self.nothing, (-1, self.kv_heads, -1, self.head_dim))
        filled = ops.concat([ops.gather(kept, self.rows, self.number(0)), new], POSITIONS)
        self.graph.store(name, filled)
        if self.heads == self.kv_heads:
            return filled
        shape = ops.shape_of(filled)
        outer, inner = (ops.gather(shape, self.numbers(*axes), self.number(0)) for axes in ((0, 1), (2, 3)))
        repeated = ops.concat([outer, self.numbers(self.heads // self.kv_heads), inner], 0)
        shared = ops.broadcast(ops.unsqueeze(filled, self.numbers(2)), repeated, broadcast_spec="BIDIRECTIONAL")
        return ops.reshape(shared, self.numbers(0, self.heads, -1, self.head_dim), True)

    def asked_for(self, states: Any, width: int) -> Any:
        """``[b, t, width]`` -> ``[1, n, width]``."""
        rows = self.ops.reshape(states, self.numbers(1, -1, width), False)
        return self.ops.gather(rows, self.asked, self.number(1))

    def normed(self, x: Any, norm: RMSNorm) -> Any:
        ops, hold = self.ops, self.graph.hold
        mean = ops.reduce_mean(ops.power(x, hold(torch.tensor(2.0))), self.numbers(-1), True)
        root = ops.sqrt(ops.add(mean, hold(torch.tensor(norm.eps))))
        return ops.multiply(ops.multiply(x, ops.divide(hold(torch.tensor(1.0)), root)), hold(norm.weight.float()))

    def product(self, x: Any, layer: Int4Linear) -> Any:
        return product(self.graph, x, codes_of(layer), layer.bias)

    def numbers(self, *values: int) -> Any:
        return self.graph.hold(torch.tensor(values))

    def number(self, value: int) -> Any:
        return self.graph.hold(torch.tensor(value))

    def settled(self) -> SettledBlocks:
        """The blocks, ready to run."""
        first = torch.zeros(1, 1, dtype=torch.int64)
        given = [torch.zeros(1, 1, self.width), first, torch.zeros(1, 1, 1, 1), first[0].int(), first[0]]
        ready = self.graph.ready(
            self.x, given, torch.empty(1, self.width), int8_activations=INT8_ACTIVATIONS[self.kernel]
        )
        return SettledBlocks(Blocks(ready), Choice(kernels=dict.fromkeys(PHASES, self.kernel), bytes=self.bytes))
