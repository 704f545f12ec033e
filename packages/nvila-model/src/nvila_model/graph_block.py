"""A block of the language model in two graphs of onnxruntime: one before attention, one behind it.

A token that is decoded meets some twenty small operations in a block besides its four products, and each costs about as
much to call as to compute. In a graph they cost next to nothing. Attention itself stays in torch, with its cache, masks
and batches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from nvila_kernels import Int4Linear
from nvila_kernels.cpu import Choice, Settled, SettledRows, Shape
from nvila_kernels.cpu.choice import MEMORY
from nvila_kernels.cpu.matmul_nbits import ACCURACY, add_weight
from nvila_kernels.cpu.onnx_graph import CONTRIBUTED, Graph
from nvila_kernels.cpu.prepared import Prepared
from nvila_kernels.cpu.settle import chosen
from nvila_kernels.cpu.shape import in_blocks
from nvila_kernels.pack import BLOCK, kernel_group
from nvila_kernels.quantization import Int4Codes
from torch import Tensor, nn

from nvila_model.cache import KVCache
from nvila_model.joined import JoinedLinear
from nvila_model.qwen2 import Block, RMSNorm


class GraphBlock(nn.Module):
    """A block of which only attention is left in torch; it only answers.

    Args:
        block: what it stands for; its attention is used, its layers are not.
        products: its four layers, each by the kernel that stands in graphs.

    Shapes: those of ``Block``.
    """

    def __init__(self, block: Block, products: Products) -> None:
        super().__init__()
        self.attend = block.self_attn.attend
        self.heads = [block.self_attn.heads, block.self_attn.kv_heads, block.self_attn.kv_heads]
        self.before = before_attention(block, products)
        self.behind = behind_attention(block, products)

    def forward(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: KVCache | None,
        layer: int,
        wanted: Tensor | None = None,
    ) -> Tensor:
        batch, length, _ = x.shape
        cos, sin = (each if len(each) == batch else each.expand(batch, -1, -1, -1) for each in angles)
        heads = self.before(x, cos, sin).view(batch, length, sum(self.heads), -1).transpose(1, 2)
        q, k, v = heads.split(self.heads, dim=1)
        attended = self.attend(q, k, v, mask, cache, layer)
        if wanted is not None:
            attended, x = attended[wanted], x[wanted]
        return self.behind(attended, x)

    def settled(self, name: str) -> tuple[Settled, ...]:
        """What became of the block that goes by a name."""
        graphs = {"before": self.before, "behind": self.behind}
        return tuple(Settled(name=f"{name}.{part}", choice=rows.prepared.choice) for part, rows in graphs.items())


@dataclass(frozen=True)
class Products:
    """The four products of a block, each with the kernel that won for it: the same for all."""

    layers: Mapping[str, Int4Linear]
    choices: Mapping[str, Choice]
    accuracy: int

    def add(self, graph: Graph, x: str, name: str) -> str:
        """One of them, with its bias, in a graph."""
        layer = self.layers[name]
        out = add_weight(graph, x, cast(Int4Codes, in_blocks(layer.codes())), self.accuracy)
        return out if layer.bias is None else graph.add("Add", out, graph.hold(layer.bias.float()))

    def rows(self, graph: Graph, result: str, width: int, names: tuple[str, ...]) -> SettledRows:
        """A graph that holds some of them, made ready."""
        choices = [self.choices[name] for name in names]
        choice = Choice(kernels=choices[0].kernels, bytes=sum(each.bytes for each in choices))
        return SettledRows(Prepared(graph.run(result, width), choice), out_features=width)


def graph_block(block: Block, *, memory: float = MEMORY, int8_activations: bool = True) -> GraphBlock | None:
    """A joined block in graphs; None where a layer has not 4 bits, or would rather have another kernel.

    Args:
        memory, int8_activations: as ``nvila_kernels.cpu.settle_`` takes them.
    """
    layers = four_bits(block)
    if layers is None:
        return None
    choices = {
        name: chosen(shape_of(layer), memory=memory, int8_activations=int8_activations)
        for name, layer in layers.items()
    }
    kernels = {kernel for choice in choices.values() for kernel in choice.kernels.values()}
    if len(kernels) != 1 or not kernels <= ACCURACY.keys():
        return None
    return GraphBlock(block, Products(layers, choices, ACCURACY[kernels.pop()]))


def four_bits(block: Block) -> dict[str, Int4Linear] | None:
    """The four products of a joined block, if all have 4 bits."""
    attention, mlp = block.self_attn, block.mlp
    if not isinstance(attention.qkv_proj, JoinedLinear) or not isinstance(mlp.gate_up_proj, JoinedLinear):
        return None
    found: dict[str, nn.Module] = {
        "qkv": attention.qkv_proj.layer,
        "o": attention.o_proj,
        "gate_up": mlp.gate_up_proj.layer,
        "down": mlp.down_proj,
    }
    layers = {name: layer for name, layer in found.items() if isinstance(layer, Int4Linear)}
    return layers if len(layers) == len(found) else None


def shape_of(layer: Int4Linear) -> Shape:
    """What one token asks of a layer."""
    group = kernel_group(layer.in_features, layer.group_size) or layer.in_features
    return Shape(rows=1, k=layer.in_features, n=layer.out_features, group=min(group, BLOCK))


def before_attention(block: Block, products: Products) -> SettledRows:
    """States ``[..., width]``, cosines and sines ``[..., d]`` -> queries, keys and values side by side.

    They are those of the normed states, queries and keys turned by their angles.
    """
    layer, attention = products.layers["qkv"], block.self_attn
    head_dim = layer.out_features // (attention.heads + 2 * attention.kv_heads)
    heads = attention.heads + attention.kv_heads
    graph = Graph({"x": layer.in_features, "cos": head_dim, "sin": head_dim})
    projected = products.add(graph, add_norm(graph, "x", block.input_layernorm), "qkv")
    widths = graph.hold(torch.tensor([heads * head_dim, attention.kv_heads * head_dim]))
    both, values = graph.add_several("Split", projected, widths, results=2, axis=-1)
    zero, half, last = (graph.hold(torch.tensor([each])) for each in (0, head_dim // 2, -1))
    cos, sin = (graph.add("Slice", each, zero, half, last) for each in ("cos", "sin"))  # the other half is the same
    turned = graph.add(  # rows are the positions of one sequence, from 0 on
        "RotaryEmbedding", graph.add("Unsqueeze", both, zero), zero, cos, sin, domain=CONTRIBUTED, num_heads=heads
    )
    result = graph.add("Concat", graph.add("Squeeze", turned, zero), values, axis=-1)
    return products.rows(graph, result, layer.out_features, ("qkv",))


def behind_attention(block: Block, products: Products) -> SettledRows:
    """What attention gave, ``[..., heads * d]``, and the states before the block -> the states behind it."""
    width, mlp_width = products.layers["o"].out_features, products.layers["down"].in_features
    graph = Graph({"attended": products.layers["o"].in_features, "x": width})
    x = graph.add("Add", products.add(graph, "attended", "o"), "x")
    both = products.add(graph, add_norm(graph, x, block.post_attention_layernorm), "gate_up")
    halves = graph.hold(torch.tensor([mlp_width, mlp_width]))
    gate, up = graph.add_several("Split", both, halves, results=2, axis=-1)
    silu = graph.add("QuickGelu", gate, domain=CONTRIBUTED, alpha=1.0)
    result = graph.add("Add", products.add(graph, graph.add("Mul", silu, up), "down"), x)
    return products.rows(graph, result, width, ("o", "gate_up", "down"))


def add_norm(graph: Graph, x: str, norm: RMSNorm) -> str:
    weight = graph.hold(norm.weight.float())
    return graph.add("SimplifiedLayerNormalization", x, weight, axis=-1, epsilon=norm.eps, stash_type=1)
