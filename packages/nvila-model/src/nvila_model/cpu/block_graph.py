"""A block of 4 bits as operators of a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self, cast

import torch
from nvila_kernels import Int4Linear
from nvila_kernels.cpu import KernelChoice, PackedModule, Shape, candidates
from nvila_kernels.cpu.matmul_nbits import ACCURACY, add_weight
from nvila_kernels.cpu.onnx_graph import CONTRIBUTED, Bound, Graph, ReadyGraph
from nvila_kernels.cpu.packed_weight import PackedWeight
from nvila_kernels.cpu.shape import PHASES, in_blocks
from nvila_kernels.pack import BLOCK, kernel_group
from nvila_kernels.quantization import Int4Codes
from torch import Tensor, nn

from nvila_model.cpu.joined_layers import JoinedLinear
from nvila_model.network.qwen2 import Block, RMSNorm


@dataclass(frozen=True)
class Parts:
    """A block of 4 bits, and what it consists of."""

    block: Block
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
    return Parts(block, block.input_layernorm, qkv, o, block.post_attention_layernorm, gate_up, down)


def shape_of(layer: Int4Linear) -> Shape:
    """What one token asks of a layer."""
    group = kernel_group(layer.in_features, layer.group_size) or layer.in_features
    return Shape(rows=1, k=layer.in_features, n=layer.out_features, group=min(group, BLOCK))


def codes_of(layer: Int4Linear) -> Int4Codes:
    return cast(Int4Codes, in_blocks(layer.codes()))


def halves(gate_up: Int4Linear) -> list[Int4Codes]:
    """The two layers that were joined: one product would have to be copied to take it apart."""
    codes = codes_of(gate_up)
    parts = zip(*(each.chunk(2) for each in (codes.codes, codes.scale, codes.zero)), strict=True)
    return [
        Int4Codes(codes=values, scale=scale, zero=zero, group_size=codes.group_size) for values, scale, zero in parts
    ]


def packed_bytes(kernel: str, layer: Int4Linear) -> float:
    shape = shape_of(layer)
    return candidates(4)[kernel].bytes(shape.n, shape.k, shape.group)


class Piece:
    """Several blocks as one graph, which changes keys and values where they are.

    Args:
        ready: the graph.
        names: of what it reads: states, what ``GraphStack`` gives beside them, keys and values of each block.
        result: of the states behind the blocks.
        behind: of the keys and values behind them.
    """

    def __init__(self, ready: ReadyGraph, names: Sequence[str], result: str, behind: Sequence[str]) -> None:
        self.ready = ready
        self.names = names
        self.result, self.behind = result, behind
        self.last = "kept" in names

    @property
    def depth(self) -> int:
        """How many blocks there are."""
        return len(self.behind) // 2

    def __call__(self, *tensors: Tensor) -> Tensor:
        """Tensors in the order of ``names`` -> states ``[b, t, width]``, or ``[n, width]`` if these blocks are last."""
        given = dict(zip(self.names, tensors, strict=True))
        states = given["x"]
        out = torch.empty(len(given["kept"]), states.shape[-1]) if self.last else torch.empty_like(states)
        self.ready(given, self.results(out, tensors[-len(self.behind) :]))
        return out

    def bound(self, given: Mapping[str, Tensor], stored: Sequence[Tensor], out: Tensor) -> Bound:
        """The graph on tensors that stay where they are.

        Args:
            given: by name; more than the graph reads, perhaps.
            stored: keys and values of each block.
            out: takes the states.
        """
        read = {name: given[name] for name in self.names if name in given}
        read |= zip(self.names[-len(stored) :], stored, strict=True)
        bound = self.ready.bound()
        bound.tell(read, self.results(out, stored))
        return bound

    def results(self, out: Tensor, stored: Sequence[Tensor]) -> dict[str, Tensor]:
        return {self.result: out, **dict(zip(self.behind, stored, strict=True))}

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self  # as for ``PackedWeight``


class PackedPiece(PackedModule):
    """Several blocks in the packing of this machine's kernels."""

    def __init__(self, piece: Piece, choice: KernelChoice) -> None:
        super().__init__(PackedWeight(piece, choice))
        self.piece = piece


class BlockGraph:
    """Blocks that become one graph.

    Args:
        graph: empty.
        width: of the states.
        kernel: that multiplies.
        heads, kv_heads, head_dim: of attention.
    """

    def __init__(self, graph: Graph, width: int, *, kernel: str, heads: int, kv_heads: int, head_dim: int) -> None:
        self.width, self.kernel = width, kernel
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.graph = graph
        angles = ["angles", head_dim // 2]
        self.given = [
            graph.read("x", ["batch", "length", width]),
            graph.read("cos", angles),
            graph.read("sin", angles),
            graph.read("places", ["batch", "length"], torch.int64),
            graph.read("added", ["masks", 1, "length", "room"]),
            graph.read("last", ["batch"], torch.int32),
            graph.read("ends", [1], torch.int32),
            graph.read("new", ["batch"], torch.int32),
        ]
        self.x = "x"
        self.added = self.filled("added")
        self.cache = ["batch", kv_heads, "capacity", head_dim]
        self.sizes = ["batch", "length", width]
        self.before: list[str] = []
        self.behind: list[str] = []
        self.bytes = 0.0

    @property
    def depth(self) -> int:
        """Blocks so far."""
        return len(self.before) // 2

    def append(self, block: Parts, *, norm: RMSNorm | None = None) -> None:
        """Another block behind those that are there; its weights are copied.

        Args:
            norm: behind the last block of all. Nobody looks at its states but at those that are asked for,
                ``[n, width]``.
        """
        self.bytes += sum(packed_bytes(self.kernel, layer) for layer in block.layers)
        self.before += (self.graph.read(f"{name}{self.depth}", self.cache) for name in ("keys", "values"))
        attended = self.attention(block)
        if norm is not None:
            self.given.append(self.graph.read("kept", ["kept"], torch.int64))
            self.sizes = ["kept", self.width]
            attended, self.x = self.kept(attended, self.heads * self.head_dim), self.kept(self.x, self.width)
        self.x = self.mlp(self.product(attended, block.o), block, norm)

    def filled(self, added: str) -> str:
        """What is added to the scores of all places, of those that are filled."""
        first, axis = (self.graph.hold(torch.tensor([each], dtype=torch.int32)) for each in (0, 3))
        return self.graph.add("Slice", added, first, "ends", axis)

    def kept(self, states: str, width: int) -> str:
        rows = self.graph.add("Reshape", states, self.graph.hold(torch.tensor([-1, width])))
        return self.graph.add("Gather", rows, "kept", axis=0)

    def attention(self, block: Parts) -> str:
        """What the heads give, side by side."""
        norm = block.attention_norm
        normed = self.graph.add(
            "SimplifiedLayerNormalization", self.x, self.graph.hold(norm.weight.float()), axis=-1, epsilon=norm.eps,
            stash_type=1,
        )  # fmt: skip
        edges = [self.product(normed, block.qkv), "", "", *self.before[-2:], "last", "ends", "cos", "sin", "places"]
        attended, *behind = self.graph.add_several(
            "GroupQueryAttention", *edges, self.added, *[""] * 5, "new", results=3, domain=CONTRIBUTED,
            num_heads=self.heads, kv_num_heads=self.kv_heads, do_rotary=1,
        )  # fmt: skip
        self.behind += behind
        return attended

    def mlp(self, attended: str, block: Parts, behind: RMSNorm | None) -> str:
        """States behind the block, of what attention adds to them, and behind the norm that follows."""
        graph = self.graph
        normed, x = self.sum(attended, self.x, block.mlp_norm)
        gate, up = (add_weight(graph, normed, half, ACCURACY[self.kernel]) for half in halves(block.gate_up))
        silu = graph.add("QuickGelu", gate, domain=CONTRIBUTED, alpha=1.0)
        given = self.product(graph.add("Mul", silu, up), block.down)
        return graph.add("Add", given, x) if behind is None else self.sum(given, x, behind)[0]

    def sum(self, one: str, other: str, norm: RMSNorm) -> tuple[str, str]:
        """The normed sum, and the sum."""
        weight = self.graph.hold(norm.weight.float())
        normed, _, _, total = self.graph.add_several(
            "SkipSimplifiedLayerNormalization", one, other, weight, results=4, domain=CONTRIBUTED, epsilon=norm.eps
        )
        return normed, total

    def product(self, x: str, layer: Int4Linear) -> str:
        return add_weight(self.graph, x, codes_of(layer), ACCURACY[self.kernel], layer.bias)

    def settled(self) -> PackedPiece:
        """The blocks, ready to run."""
        ready = self.graph.ready({self.x: self.sizes, **dict.fromkeys(self.behind, self.cache)})
        piece = Piece(ready, [*self.given, *self.before], self.x, self.behind)
        return PackedPiece(piece, KernelChoice(kernels=dict.fromkeys(PHASES, self.kernel), bytes=self.bytes))
