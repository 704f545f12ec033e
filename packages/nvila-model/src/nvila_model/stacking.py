"""The blocks of a language model become a stack of graphs.

A graph holds as many blocks as its share of memory allows. Where memory allows it and it pays, the blocks are packed
once more, for prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import cast

import torch
from nvila_kernels import Int4Linear
from nvila_kernels.cpu import Choice, SettledLinear, Shape, openvino_graph
from nvila_kernels.cpu.choice import Alike
from nvila_kernels.cpu.matmul_nbits import ACCURACY
from nvila_kernels.cpu.memory import give_back
from nvila_kernels.cpu.onnx_graph import Graph
from nvila_kernels.cpu.openvino_int4 import INT8_ACTIVATIONS
from nvila_kernels.cpu.settle import chosen_alike, packed
from torch import nn

from nvila_model.block_graph import BlockGraph, Parts, SettledPiece, codes_of, packed_bytes, parts_of, shape_of
from nvila_model.graph_stack import GraphStack
from nvila_model.joined import JoinedLinear
from nvila_model.qwen2 import Block, Qwen2, rotary_angles
from nvila_model.stack import Stack
from nvila_model.stateful_graph import StatefulGraph
from nvila_model.stateful_stack import StatefulStack

GRAPH = 2**28
"""Bytes of weights in a graph of several blocks, at most: so much lies in a temporary file while it is packed."""
SAVED = 1e-4
"""Seconds that a graph saves at every call of a block, at least: small operations outside take several times that."""


def graph_stack(llm: Qwen2, *, memory: float | None = None, int8_activations: bool = True) -> Stack | None:
    """Joined blocks in graphs; None where a layer has not 4 bits, or other kernels gain more than graphs do.

    Args:
        llm: its blocks are taken out as they become graphs, so that no weight is in memory twice.
        memory, int8_activations: as ``nvila_kernels.cpu.settle_`` takes them; without ``memory`` weights are packed a
            second time for prompts where there is room and those gain enough (``nvila_kernels.cpu.choice``).
    """
    found = [parts_of(cast(Block, block)) for block in llm.layers]
    parts = [each for each in found if each is not None]
    del found
    if len(parts) < len(llm.layers):
        return None
    shapes = [shape_of(layer) for each in parts for layer in each.layers]
    alike = chosen_alike(
        shapes, list(ACCURACY), whole=list(INT8_ACTIVATIONS), saved=SAVED * len(parts), memory=memory,
        int8_activations=int8_activations,
    )  # fmt: skip
    if alike is None:
        return None
    del llm.layers[:]
    if alike.kernel in INT8_ACTIVATIONS:
        return stateful_stack(llm, parts, alike.kernel)
    return stack_with_cache(llm, parts, alike)


def stack_with_cache(llm: Qwen2, parts: list[Parts], alike: Alike) -> GraphStack:
    """Blocks, which are taken out of the list, in graphs of onnxruntime."""
    sizes = {"kv_heads": llm.kv_heads, "head_dim": llm.head_dim}
    heads = parts[0].block.self_attn.heads
    graphs: list[SettledPiece] = []
    prompts: list[Block] = []
    for some in shares(parts, alike.kernel, GRAPH):
        with Graph() as graph:
            made = BlockGraph(graph, len(llm.norm.weight), kernel=alike.kernel, heads=heads, **sizes)
            while some:
                block = some.pop(0)
                made.append(block, norm=None if some or parts else llm.norm)
                if alike.prompts:
                    prompts.append(prompt_block(block, alike.prompts))
                del block
                give_back()
            graphs.append(made.settled())
        give_back()
    angles = partial(
        rotary_angles, head_dim=llm.head_dim, theta=llm.rope_theta, factor=llm.rope_factor, dtype=torch.float32
    )
    return GraphStack(graphs, llm.norm, angles=angles, prompts=prompts, **sizes)


def stateful_stack(llm: Qwen2, parts: list[Parts], kernel: str) -> StatefulStack:
    """Blocks, which are taken out of the list, in a graph of OpenVINO."""
    made = StatefulGraph(openvino_graph.Graph(), llm, heads=parts[0].block.self_attn.heads, kernel=kernel)
    while parts:
        block = parts.pop(0)
        made.append(block, norm=None if parts else llm.norm)
        del block
        give_back()
    return StatefulStack(made.settled(), llm.norm)


def shares(parts: list[Parts], kernel: str, most: float) -> Iterator[list[Parts]]:
    """Blocks for one graph after the other, of at most so many bytes once packed; they are taken out of the list."""
    depth = max(1, int(most // sum(packed_bytes(kernel, layer) for layer in parts[0].layers)))
    while parts:
        some = parts[:depth]
        del parts[:depth]
        yield some


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
