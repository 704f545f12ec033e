"""The blocks of a language model become a stack: of compiled functions, or of graphs.

A graph holds as many blocks as its share of memory allows. Where memory allows it and it pays, the blocks are packed
once more, for prompts. Compiled functions read prompts and write tokens with one packing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import cast

import torch
from nvila_kernels import Int4Linear
from nvila_kernels.cpu import KernelChoice, PackedLinear, Shape
from nvila_kernels.cpu.compiled import layout
from nvila_kernels.cpu.matmul_nbits import ACCURACY
from nvila_kernels.cpu.memory import give_back
from nvila_kernels.cpu.numba_int4 import NUMBA_INT8, run_of
from nvila_kernels.cpu.onnx_graph import Graph
from nvila_kernels.cpu.packed_linear import measure_alike, packed, settled
from nvila_kernels.cpu.packed_weight import prepared
from nvila_kernels.cpu.selection import Alike
from nvila_kernels.cpu.shape import PHASES
from torch import nn

from nvila_model.cpu.block_graph import BlockGraph, PackedPiece, Parts, codes_of, packed_bytes, parts_of, shape_of
from nvila_model.cpu.graph_stack import GraphStack
from nvila_model.cpu.joined_layers import JoinedLinear
from nvila_model.cpu.prompt_blocks import Angles, PromptBlocks
from nvila_model.cpu.stack import Stack
from nvila_model.cpu.token_blocks import TokenBlocks
from nvila_model.network.qwen2 import Block, Qwen2, rotary_angles

GRAPH = 2**28
"""Bytes of weights in a graph of several blocks, at most: so much lies in a temporary file while it is packed."""
SAVED = 1e-4
"""Seconds that a graph saves at every call of a block, at least: small operations outside take several times that."""
SAVED_COMPILED = 4e-4
"""The same for a compiled token: it saves the calls of four products besides."""


def stack_of(llm: Qwen2, *, memory: float | None = None, int8_activations: bool = True) -> Stack | None:
    """Joined blocks as one; None where a layer has not 4 bits, or other kernels gain more by themselves.

    Args:
        llm: its blocks are taken out as they are packed, so that no weight is in memory twice.
        memory, int8_activations: as ``nvila_kernels.cpu.optimize_`` takes them; without ``memory`` weights are packed a
            second time for prompts where there is room and those gain enough (``nvila_kernels.cpu.selection``).
    """
    found = [parts_of(cast(Block, block)) for block in llm.layers]
    parts = [each for each in found if each is not None]
    del found
    if len(parts) < len(llm.layers):
        return None
    shapes = [shape_of(layer) for each in parts for layer in each.layers]
    alike = measure_alike(
        shapes, list(ACCURACY), saved=SAVED * len(parts), whole={NUMBA_INT8.name: SAVED_COMPILED * len(parts)},
        memory=memory, int8_activations=int8_activations,
    )  # fmt: skip
    if alike is None:
        return None
    del llm.layers[:]
    if alike.kernel == NUMBA_INT8.name:
        return compiled_stack(llm, parts)
    return stack_with_cache(llm, parts, alike)


def stack_with_cache(llm: Qwen2, parts: list[Parts], alike: Alike) -> GraphStack:
    """Blocks, which are taken out of the list, in graphs of onnxruntime."""
    sizes = {"kv_heads": llm.kv_heads, "head_dim": llm.head_dim}
    heads = parts[0].block.self_attn.heads
    graphs: list[PackedPiece] = []
    prompts: list[Block] = []
    for some in shares(parts, alike.kernel, GRAPH):
        with Graph() as graph:
            made = BlockGraph(graph, len(llm.norm.weight), kernel=alike.kernel, heads=heads, **sizes)
            while some:
                block = some.pop(0)
                made.append(block, norm=None if some or parts else llm.norm)
                if alike.prompts:
                    prompts.append(with_layers(block, read_by(block, alike.prompts)))
                del block
                give_back()
            graphs.append(made.settled())
        give_back()
    angles = angles_of(llm)
    reader = PromptBlocks(prompts, llm.norm, angles) if prompts else None
    return GraphStack(graphs, llm.norm, angles=angles, prompts=reader, **sizes)


def shares(parts: list[Parts], kernel: str, most: float) -> Iterator[list[Parts]]:
    """Blocks for one graph after the other, of at most so many bytes once packed; they are taken out of the list."""
    depth = max(1, int(most // sum(packed_bytes(kernel, layer) for layer in parts[0].layers)))
    while parts:
        some = parts[:depth]
        del parts[:depth]
        yield some


def compiled_stack(llm: Qwen2, parts: list[Parts]) -> Stack:
    """Blocks, which are taken out of the list, as compiled functions."""
    from nvila_model.cpu.compiled_stack import CompiledStack  # and with it numba

    tokens = TokenBlocks(llm, parts)
    blocks: list[Block] = []
    while parts:
        part = parts.pop(0)
        weights = [layout.pack(codes_of(layer)) for layer in part.layers]
        tokens.weights.append(weights)
        blocks.append(with_layers(part, [compiled(*each) for each in zip(part.layers, weights, strict=True)]))
        del part
        give_back()
    prompts = PromptBlocks(blocks, llm.norm, angles_of(llm))
    return CompiledStack(tokens, prompts, kv_heads=llm.kv_heads, head_dim=llm.head_dim)


def compiled(layer: Int4Linear, weight: layout.Weight) -> PackedLinear:
    """The layer by itself, for prompts."""
    size = packed_bytes(NUMBA_INT8.name, layer)
    choice = KernelChoice(kernels=dict.fromkeys(PHASES, NUMBA_INT8.name), bytes=size)
    return settled(layer, prepared({NUMBA_INT8.name: run_of(weight)}, choice, outputs=weight.outputs))


def read_by(parts: Parts, kernels: Mapping[Shape, str]) -> list[PackedLinear]:
    """The layers in the packing of kernels for prompts."""

    def settled_for(layer: Int4Linear) -> PackedLinear:
        kernel = kernels[shape_of(layer)]
        choice = KernelChoice(kernels={"prefill": kernel}, bytes=packed_bytes(kernel, layer))
        return packed(layer, codes_of(layer), choice)

    return [settled_for(layer) for layer in parts.layers]


def with_layers(parts: Parts, layers: Sequence[PackedLinear]) -> Block:
    """The block itself, other layers in the place of its own."""
    block = parts.block
    qkv, o, gate_up, down = layers
    cast(JoinedLinear, block.self_attn.qkv_proj).layer = qkv
    block.self_attn.o_proj = cast(nn.Linear, o)
    cast(JoinedLinear, block.mlp.gate_up_proj).layer = gate_up
    block.mlp.down_proj = cast(nn.Linear, down)
    return block


def angles_of(llm: Qwen2) -> Angles:
    """Of positions, in float32, as ``Qwen2`` makes them."""
    return partial(
        rotary_angles, head_dim=llm.head_dim, theta=llm.rope_theta, factor=llm.rope_factor, dtype=torch.float32
    )
