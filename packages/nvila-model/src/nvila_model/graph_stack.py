"""The blocks of a language model in graphs of onnxruntime, one for all that lies between two attentions.

A token that is decoded meets some twenty small operations in a block besides its four products, and each costs about as
much to call as to compute. In a graph they cost next to nothing. Attention itself stays in torch, with its cache, masks
and batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from nvila_kernels import Int4Linear
from nvila_kernels.cpu import Choice, SettledRows, Shape
from nvila_kernels.cpu.choice import MEMORY
from nvila_kernels.cpu.matmul_nbits import ACCURACY, add_weight
from nvila_kernels.cpu.memory import give_back
from nvila_kernels.cpu.onnx_graph import CONTRIBUTED, Graph
from nvila_kernels.cpu.prepared import Prepared
from nvila_kernels.cpu.settle import chosen
from nvila_kernels.cpu.shape import in_blocks
from nvila_kernels.pack import BLOCK, kernel_group
from nvila_kernels.quantization import Int4Codes
from torch import Tensor, nn

from nvila_model.cache import KVCache
from nvila_model.joined import JoinedLinear
from nvila_model.qwen2 import Block, RMSNorm, attend


class GraphStack(nn.Module):
    """Blocks one after the other, of which only attention is left in torch; they only answer.

    Args:
        graphs: before the first attention, between each two, and behind the last.
        heads: how many of queries, keys and values.
        head_dim: width of one.

    Shapes: those of ``Block``.
    """

    def __init__(self, graphs: Sequence[SettledRows], *, heads: Sequence[int], head_dim: int) -> None:
        super().__init__()
        self.graphs = nn.ModuleList(graphs)
        self.heads, self.head_dim = list(heads), head_dim

    def forward(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: KVCache | None,
        layer: int,
        wanted: Tensor | None = None,
    ) -> Tensor:
        batch, length, width = x.shape
        cos, sin = (each.expand(batch, 1, length, self.head_dim).reshape(batch * length, -1) for each in angles)
        rows = x.reshape(batch * length, width)
        first, *between, last = self.graphs
        projected = first(rows, cos, sin)
        for index, graph in enumerate(between):
            attended = self.attend(projected, batch, mask, cache, layer + index)
            rows, projected = graph(attended.flatten(0, 1), rows, cos, sin).tensor_split([width], dim=-1)
        attended = self.attend(projected, batch, mask, cache, layer + len(between))
        x = rows.view(batch, length, width)
        return last(attended, x) if wanted is None else last(attended[wanted], x[wanted])

    def attend(self, projected: Tensor, batch: int, mask: Tensor | None, cache: KVCache | None, layer: int) -> Tensor:
        """Shapes: queries, keys and values side by side, ``[b * t, heads * d]`` -> ``[b, t, queries * d]``."""
        heads = projected.view(batch, -1, sum(self.heads), self.head_dim).transpose(1, 2)
        q, k, v = heads.split(self.heads, dim=1)
        return attend(q, k, v, mask, cache, layer)


@dataclass(frozen=True)
class Parts:
    """What a block of 4 bits consists of."""

    attention_norm: RMSNorm
    qkv: Int4Linear
    o: Int4Linear
    mlp_norm: RMSNorm
    gate_up: Int4Linear
    down: Int4Linear

    @property
    def layers(self) -> tuple[Int4Linear, ...]:
        return self.qkv, self.o, self.gate_up, self.down


def parts_of(block: Block) -> Parts | None:
    """The parts of a joined block; None if not all of its layers have 4 bits."""
    attention, mlp = block.self_attn, block.mlp
    if not isinstance(attention.qkv_proj, JoinedLinear) or not isinstance(mlp.gate_up_proj, JoinedLinear):
        return None
    o, down = cast(nn.Module, attention.o_proj), cast(nn.Module, mlp.down_proj)
    qkv, gate_up = attention.qkv_proj.layer, mlp.gate_up_proj.layer
    if not (isinstance(qkv, Int4Linear) and isinstance(o, Int4Linear)):
        return None
    if not (isinstance(gate_up, Int4Linear) and isinstance(down, Int4Linear)):
        return None
    return Parts(block.input_layernorm, qkv, o, block.post_attention_layernorm, gate_up, down)


def shape_of(layer: Int4Linear) -> Shape:
    """What one token asks of a layer."""
    group = kernel_group(layer.in_features, layer.group_size) or layer.in_features
    return Shape(rows=1, k=layer.in_features, n=layer.out_features, group=min(group, BLOCK))


def graph_stack(blocks: nn.ModuleList, *, memory: float = MEMORY, int8_activations: bool = True) -> GraphStack | None:
    """Joined blocks in graphs; None where a layer has not 4 bits, or would rather have another kernel than the others.

    Args:
        blocks: of a language model; emptied as they become graphs, so that no weight is in memory twice.
        memory, int8_activations: as ``nvila_kernels.cpu.settle_`` takes them.
    """
    attention = cast(Block, blocks[0]).self_attn
    heads = (attention.heads, attention.kv_heads, attention.kv_heads)
    found = [parts_of(cast(Block, block)) for block in blocks]
    parts = [each for each in found if each is not None]
    del found
    shapes = {shape_of(layer) for each in parts for layer in each.layers}
    choices = {shape: chosen(shape, memory=memory, int8_activations=int8_activations) for shape in shapes}
    kernels = {kernel for choice in choices.values() for kernel in choice.kernels.values()}
    if len(parts) < len(blocks) or len(kernels) != 1 or not kernels <= ACCURACY.keys():
        return None
    head_dim = parts[0].qkv.out_features // sum(heads)
    between = Between(choices, ACCURACY[kernels.pop()], heads, head_dim)
    del blocks[:]
    graphs: list[SettledRows] = []
    behind: Parts | None = None
    while behind is not None or parts:
        ahead = parts.pop(0) if parts else None
        graphs.append(between.rows(behind, ahead))
        behind = ahead
        give_back()
    return GraphStack(graphs, heads=heads, head_dim=head_dim)


@dataclass(frozen=True)
class Between:
    """Makes graphs of what lies between two attentions.

    Args:
        choices: of the kernel that multiplies, for every shape.
        accuracy: the level of that kernel.
        heads, head_dim: of queries, keys and values.
    """

    choices: dict[Shape, Choice]
    accuracy: int
    heads: tuple[int, ...]
    head_dim: int

    def rows(self, behind: Parts | None, ahead: Parts | None) -> SettledRows:
        """The end of one block and the beginning of the next; before the first and behind the last, one of them.

        Shapes: what attention gave ``[m, heads * d]`` (with a block behind), states ``[m, width]``, cosines and sines
        ``[m, d]`` (with a block ahead) -> the states behind the block and what the next attention reads, side by side.
        """
        width = len((behind or cast(Parts, ahead)).mlp_norm.weight)
        attended = {"attended": self.heads[0] * self.head_dim} if behind else {}
        angles = {"cos": self.head_dim, "sin": self.head_dim} if ahead else {}
        graph = Graph({**attended, "x": width, **angles})
        layers: list[Int4Linear] = []
        results: list[str] = []
        x, size = "x", 0
        if behind:
            x, size = self.end(graph, behind), width
            layers += behind.layers[1:]
            results.append(x)
        if ahead:
            results.append(self.beginning(graph, x, ahead))
            layers.append(ahead.qkv)
            size += ahead.qkv.out_features
        result = graph.add("Concat", *results, axis=-1) if len(results) > 1 else results[0]
        choices = [self.choices[shape_of(layer)] for layer in layers]
        choice = Choice(kernels=choices[0].kernels, bytes=sum(each.bytes for each in choices))
        return SettledRows(Prepared(graph.run(result, size), choice), out_features=size)

    def beginning(self, graph: Graph, x: str, block: Parts) -> str:
        """Queries, keys and values of normed states, side by side, queries and keys turned by their angles."""
        turning = sum(self.heads[:2])
        projected = self.product(graph, add_norm(graph, x, block.attention_norm), block.qkv)
        widths = graph.hold(torch.tensor([turning * self.head_dim, self.heads[2] * self.head_dim]))
        both, values = graph.add_several("Split", projected, widths, results=2, axis=-1)
        zero, half, last = (graph.hold(torch.tensor([each])) for each in (0, self.head_dim // 2, -1))
        cos, sin = (graph.add("Slice", each, zero, half, last) for each in ("cos", "sin"))  # the other half is the same
        both = graph.add(  # rows are the positions of one sequence, from 0 on
            "RotaryEmbedding", graph.add("Unsqueeze", both, zero), zero, cos, sin, domain=CONTRIBUTED, num_heads=turning
        )
        return graph.add("Concat", graph.add("Squeeze", both, zero), values, axis=-1)

    def end(self, graph: Graph, block: Parts) -> str:
        """States behind a block, of what attention gave and the states before it."""
        width = block.down.in_features
        x = graph.add("Add", self.product(graph, "attended", block.o), "x")
        halves = self.product(graph, add_norm(graph, x, block.mlp_norm), block.gate_up)
        gate, up = graph.add_several("Split", halves, graph.hold(torch.tensor([width, width])), results=2, axis=-1)
        silu = graph.add("QuickGelu", gate, domain=CONTRIBUTED, alpha=1.0)
        return graph.add("Add", self.product(graph, graph.add("Mul", silu, up), block.down), x)

    def product(self, graph: Graph, x: str, layer: Int4Linear) -> str:
        out = add_weight(graph, x, cast(Int4Codes, in_blocks(layer.codes())), self.accuracy)
        return out if layer.bias is None else graph.add("Add", out, graph.hold(layer.bias.float()))


def add_norm(graph: Graph, x: str, norm: RMSNorm) -> str:
    weight = graph.hold(norm.weight.float())
    return graph.add("SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=norm.eps, stash_type=1)
