"""The blocks of a language model in graphs of onnxruntime.

A token that is decoded meets some thirty small operations in a block besides its four products, and each costs about as
much to call as to compute. In a graph they cost next to nothing, attention included: it reads and writes the same cache
as the blocks in torch do. Coming back to Python is dear too, since the weights have pushed Python out of the
processor's cache by then: a graph holds as many blocks as its share of memory allows.

Prompts make products of hundreds of rows, which other kernels may be far better at. Where memory allows it, blocks in
torch with those kernels stand beside the graphs and read prompts into the same cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from nvila_kernels import Int4Linear
from nvila_kernels.cpu import Choice, SettledLinear, SettledModule, Shape, candidates
from nvila_kernels.cpu.matmul_nbits import ACCURACY, add_weight
from nvila_kernels.cpu.memory import give_back
from nvila_kernels.cpu.onnx_graph import CONTRIBUTED, Graph
from nvila_kernels.cpu.prepared import Prepared
from nvila_kernels.cpu.settle import chosen_alike, packed
from nvila_kernels.cpu.shape import DECODE_ROWS, PHASES, in_blocks
from nvila_kernels.pack import BLOCK, kernel_group
from nvila_kernels.quantization import Int4Codes
from torch import Tensor, nn

from nvila_model.cache import KVCache
from nvila_model.joined import JoinedLinear
from nvila_model.qwen2 import Block, RMSNorm, causal_mask


class GraphStack(nn.Module):
    """Blocks one after the other, in float32; they only answer.

    Args:
        graphs: of one or more blocks each.
        depths: how many blocks each has.
        kv_heads, head_dim: of keys and values.
        prompts: the same blocks in torch, which read what has more rows than decoding; empty if graphs do.

    Shapes: those of ``Block``. The cache must be of float32.
    """

    def __init__(
        self,
        graphs: Sequence[SettledModule],
        depths: Sequence[int],
        *,
        kv_heads: int,
        head_dim: int,
        prompts: Sequence[Block] = (),
    ) -> None:
        super().__init__()
        self.graphs = nn.ModuleList(graphs)
        self.prompts = nn.ModuleList(prompts)
        self.depths = list(depths)
        self.kv_heads, self.head_dim = kv_heads, head_dim

    def forward(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: KVCache | None,
        layer: int,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """Raises: ValueError for a mask by which a position looks ahead, or a cache that is full."""
        batch, length, width = x.shape
        if self.prompts and batch * length > DECODE_ROWS:
            return self.read(x, angles, mask, cache, layer, wanted)
        depth = sum(self.depths)
        if cache is None:
            cache, places = self.passing_cache(batch, length), [0] * depth
        else:
            places = list(range(layer, layer + depth))
        end = cache.end(length)
        given = (*self.turns(angles, batch, length, end), added(mask, length, end), *counts(batch, length, end))
        kept = torch.arange(batch * length) if wanted is None else wanted.flatten().nonzero().flatten()
        states = x.float().contiguous()
        for index, (graph, count) in enumerate(zip(self.graphs, self.depths, strict=True)):
            stored = [each for place in places[:count] for each in cache.layers[place]]
            last = index == len(self.graphs) - 1
            sizes = (len(kept), width) if last else states.shape
            states = cast(SettledModule, graph).run((states, *given, *([kept] if last else [])), sizes, stored)
            places = places[count:]
        states = states.to(x.dtype)
        return states.view(x.shape) if wanted is None else states

    def read(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: KVCache | None,
        layer: int,
        wanted: Tensor | None,
    ) -> Tensor:
        """What the blocks in torch make of a prompt."""
        states, turns = x.float(), (angles[0].float(), angles[1].float())
        last = len(self.prompts) - 1
        for index, block in enumerate(self.prompts):
            states = block(states, turns, mask, cache, layer + index, wanted if index == last else None)
        return states.to(x.dtype)

    def passing_cache(self, batch: int, length: int) -> KVCache:
        """One layer of keys and values, which all blocks use one after the other where nobody asks for them later."""
        return KVCache(
            layers=1, batch=batch, heads=self.kv_heads, length=length, head_dim=self.head_dim, dtype=torch.float32,
            device=torch.device("cpu"),
        )  # fmt: skip

    def turns(self, angles: tuple[Tensor, Tensor], batch: int, length: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
        """Cosines and sines, a row each, and which row belongs to which position.

        Shapes: ``[m, head_dim / 2]`` twice, the second half of an angle being the first again, and int64 ``[b, t]``.
        The runtime asks for at least as many rows as positions in the cache.
        """
        rows = batch * length
        tables: list[Tensor] = []
        for each in angles:
            table = each.new_empty(max(rows, end), self.head_dim // 2, dtype=torch.float32)
            half = each[..., : self.head_dim // 2]
            table[:rows] = half.expand(batch, 1, length, -1).reshape(rows, -1)
            tables.append(table)
        return tables[0], tables[1], torch.arange(rows).view(batch, length)


def added(mask: Tensor | None, length: int, end: int) -> Tensor:
    """What is added to the scores: nothing, or the least there is where a position may not look.

    Shapes: bool ``[b, 1, t, end]`` or None -> float32 ``[b or 1, 1, t, end]``.
    Raises: ValueError for a mask by which a position looks ahead: the graph looks back only.
    """
    if mask is None:
        return torch.zeros(1, 1, length, end)
    if length > 1 and not torch.compiler.is_compiling():
        ahead = mask & ~causal_mask(length, end - length, device=mask.device)
        if bool(ahead.any()):
            row, _, query, key = (int(each) for each in ahead.nonzero()[0])
            raise ValueError(
                f"position {end - length + query} of row {row} may look at {key}, which lies ahead: blocks in graphs "
                "are causal, use the model before it was settled"
            )
    return torch.zeros(mask.shape).masked_fill_(~mask, torch.finfo(torch.float32).min)


def counts(batch: int, length: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
    """What the runtime asks for: the last filled position of every row, that of all, and the new ones of every row."""
    each = torch.full((2, batch), end - 1, dtype=torch.int32)
    each[1] = length
    return each[0], torch.tensor([end], dtype=torch.int32), each[1]


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


GRAPH = 2**28
"""Bytes of weights in a graph of several blocks, at most: so much lies in a temporary file while it is packed."""


SAVED = 1e-4
"""Seconds that a graph saves at every call of a block, at least: small operations outside take several times that."""


def graph_stack(
    blocks: nn.ModuleList, *, memory: float | None = None, int8_activations: bool = True
) -> GraphStack | None:
    """Joined blocks in graphs; None where a layer has not 4 bits, or other kernels gain more than graphs do.

    Args:
        blocks: of a language model; emptied as they become graphs, so that no weight is in memory twice.
        memory, int8_activations: as ``nvila_kernels.cpu.settle_`` takes them; without ``memory`` weights are packed a
            second time for prompts where there is room and those gain enough (``nvila_kernels.cpu.choice``).
    """
    attention = cast(Block, blocks[0]).self_attn
    found = [parts_of(cast(Block, block)) for block in blocks]
    parts = [each for each in found if each is not None]
    del found
    if len(parts) < len(blocks):
        return None
    shapes = [shape_of(layer) for each in parts for layer in each.layers]
    saved = SAVED * len(parts)
    alike = chosen_alike(shapes, list(ACCURACY), saved=saved, memory=memory, int8_activations=int8_activations)
    if alike is None:
        return None
    heads, kv_heads = attention.heads, attention.kv_heads
    head_dim = parts[0].qkv.out_features // (heads + 2 * kv_heads)
    depth = max(1, int(GRAPH // sum(packed_bytes(alike.kernel, layer) for layer in parts[0].layers)))
    width = len(parts[0].mlp_norm.weight)
    del blocks[:], attention
    graphs: list[SettledModule] = []
    depths: list[int] = []
    prompts: list[Block] = []
    while parts:
        with Graph() as graph:
            made = BlockGraph(graph, width, kernel=alike.kernel, heads=heads, kv_heads=kv_heads, head_dim=head_dim)
            while parts and made.depth < depth:
                next_ = parts.pop(0)
                made.append(next_, last=not parts)
                if alike.prompts:
                    prompts.append(prompt_block(next_, alike.prompts))
                del next_
                give_back()
            depths.append(made.depth)
            graphs.append(made.settled())
        give_back()
    return GraphStack(graphs, depths, kv_heads=kv_heads, head_dim=head_dim, prompts=prompts)


def prompt_block(parts: Parts, kernels: Mapping[Shape, str]) -> Block:
    """The block itself, its layers in the packing of kernels for prompts."""
    block = parts.block

    def settled(layer: Int4Linear) -> SettledLinear:
        kernel = kernels[shape_of(layer)]
        choice = Choice(kernels={"prefill": kernel}, bytes=packed_bytes(kernel, layer))
        return packed(layer, codes_of(layer), choice)

    cast(JoinedLinear, block.self_attn.qkv_proj).layer = settled(parts.qkv)
    block.self_attn.o_proj = cast(nn.Linear, settled(parts.o))
    cast(JoinedLinear, block.mlp.gate_up_proj).layer = settled(parts.gate_up)
    block.mlp.down_proj = cast(nn.Linear, settled(parts.down))
    return block


def packed_bytes(kernel: str, layer: Int4Linear) -> float:
    shape = shape_of(layer)
    return candidates(4)[kernel].bytes(shape.n, shape.k, shape.group)


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
            graph.read("added", ["masks", 1, "length", "end"]),
            graph.read("last", ["batch"], torch.int32),
            graph.read("ends", [1], torch.int32),
            graph.read("new", ["batch"], torch.int32),
        ]
        self.x = "x"
        self.cache = ["batch", kv_heads, "capacity", head_dim]
        self.sizes = ["batch", "length", width]
        self.before: list[str] = []
        self.behind: list[str] = []
        self.bytes = 0.0

    @property
    def depth(self) -> int:
        """Blocks so far."""
        return len(self.before) // 2

    def append(self, block: Parts, *, last: bool) -> None:
        """Another block behind those that are there; its weights are copied.

        Args:
            last: nobody looks at its states but at those that are asked for, ``[n, width]``.
        """
        self.bytes += sum(packed_bytes(self.kernel, layer) for layer in block.layers)
        self.before += (self.graph.read(f"{name}{self.depth}", self.cache) for name in ("keys", "values"))
        attended = self.attention(block)
        if last:
            self.given.append(self.graph.read("kept", ["kept"], torch.int64))
            self.sizes = ["kept", self.width]
            attended, self.x = self.kept(attended, self.heads * self.head_dim), self.kept(self.x, self.width)
        self.x = self.mlp(self.product(attended, block.o), block)

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
            "GroupQueryAttention", *edges, "added", *[""] * 5, "new", results=3, domain=CONTRIBUTED,
            num_heads=self.heads, kv_num_heads=self.kv_heads, do_rotary=1,
        )  # fmt: skip
        self.behind += behind
        return attended

    def mlp(self, attended: str, block: Parts) -> str:
        """States behind the block, of what attention adds to them."""
        graph, norm = self.graph, block.mlp_norm
        normed, _, _, x = graph.add_several(
            "SkipSimplifiedLayerNormalization", attended, self.x, graph.hold(norm.weight.float()), results=4,
            domain=CONTRIBUTED, epsilon=norm.eps,
        )  # fmt: skip
        gate, up = (add_weight(graph, normed, half, ACCURACY[self.kernel]) for half in halves(block.gate_up))
        silu = graph.add("QuickGelu", gate, domain=CONTRIBUTED, alpha=1.0)
        return graph.add("Add", self.product(graph.add("Mul", silu, up), block.down), x)

    def product(self, x: str, layer: Int4Linear) -> str:
        return add_weight(self.graph, x, codes_of(layer), ACCURACY[self.kernel], layer.bias)

    def settled(self) -> SettledModule:
        """Reads states ``[b, t, width]`` and what ``GraphStack`` gives beside them; changes keys and values."""
        result, names, behind, width = self.x, [*self.given, *self.before], self.behind, self.width
        ready = self.graph.ready({result: self.sizes, **dict.fromkeys(behind, self.cache)})
        last = "kept" in names

        def run(*tensors: Tensor) -> Tensor:
            given = dict(zip(names, tensors, strict=True))
            out = torch.empty(len(given["kept"]), width) if last else torch.empty_like(given["x"])
            stored = zip(behind, tensors[-len(behind) :], strict=True)
            ready(given, {result: out, **dict(stored)})
            return out

        return SettledModule(Prepared(run, Choice(kernels=dict.fromkeys(PHASES, self.kernel), bytes=self.bytes)))
