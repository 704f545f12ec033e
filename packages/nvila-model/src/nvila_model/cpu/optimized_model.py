"""A quantized model on the fastest kernels of this machine's processor, in place.

A language model of 4 bits becomes an ``OptimizedQwen2`` where its kernels can be compiled; elsewhere, and in the vision
tower, each layer is given to the kernel that measured fastest (``nvila_kernels.cpu``).
"""

from __future__ import annotations

import logging
from typing import cast

import torch
from nvila_kernels import Int4Linear
from nvila_kernels.cpu import (
    Arena,
    KernelChoice,
    OptimizedLayer,
    PackedLinear,
    compiled_choice,
    give_back,
    large_blocks_returned,
    optimize_,
    pack_layer,
    packed_copy,
    shape_of,
)
from torch import Tensor, nn

from nvila_model.cpu.joined_layers import JoinedAttention, JoinedMLP, join_
from nvila_model.cpu.optimized_qwen2 import OptimizedQwen2
from nvila_model.network.qwen2 import Block, Qwen2, rotary_frequencies
from nvila_model.network.vlm import VLM
from nvila_model.network.vocabulary import ScreenedHead

logger = logging.getLogger(__name__)

PRODUCTS = "self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"
"""Of a joined block, in the order in which a compiled token has them."""
GROUP = 256
"""Weights that share a scale in the rough copy of the output head: it only has to find the best tokens."""


def is_optimized(model: nn.Module) -> bool:
    """Whether some of a model is packed for this machine, so that it only answers."""
    return any(isinstance(module, (PackedLinear, OptimizedQwen2)) for module in model.modules())


def optimize(
    model: VLM, *, max_memory: float | None = None, int8_activations: bool = True
) -> tuple[OptimizedLayer, ...]:
    """Give every quantized layer of a model to the fastest kernel, in place; it only answers from then on.

    Training it, saving it, pickling it or moving it elsewhere is refused. The output head of a language model in 4 bits
    is screened: a token reads all of it, and in float32 it takes as long as half of the 4-bit layers. So the scores of
    all tokens are those of a copy in 4 bits, those of the best again by the head itself.

    Args:
        model: on the CPU. Layers of floats stay as they are.
        max_memory: bytes that all packed weights may take.
        int8_activations: whether 4-bit layers may round activations to 8 bits, which is what the fastest do.

    Returns: the kernel of each layer.
    Raises: ValueError if it was optimized before, if a layer is on another device, or if the smallest kernels take more
        than ``max_memory``.
    """
    if is_optimized(model):
        raise ValueError("the model was optimized before: load it again to choose other kernels")
    lines: list[OptimizedLayer] = []
    left = max_memory
    with large_blocks_returned():
        if any(isinstance(layer, Int4Linear) for layer in model.llm.modules()):
            head = optimize_head(model.llm, int8_activations=int8_activations)
            left = None if left is None else left - head.choice.bytes
            llm, done = optimize_language(model.llm, max_memory=left, int8_activations=int8_activations)
            model.llm = cast(Qwen2, llm)
            lines += [OptimizedLayer(name=f"llm.{each.name}", choice=each.choice) for each in (*done, head)]
            left = None if left is None else left - sum(each.choice.bytes for each in done)
    done = optimize_(cast(nn.Module, model.vision), phases=("prefill",), max_memory=left)
    return (*lines, *(OptimizedLayer(name=f"vision.{each.name}", choice=each.choice) for each in done))


def optimize_language(
    llm: Qwen2, *, max_memory: float | None = None, int8_activations: bool = True
) -> tuple[Qwen2 | OptimizedQwen2, tuple[OptimizedLayer, ...]]:
    """What stands for a language model: another one if all of it can be compiled, else the same in place.

    Args:
        llm: its blocks are taken out as they are packed, so that no weight is in memory twice.
        max_memory, int8_activations: as for ``optimize``.
    """
    blocks = cast("list[Block]", list(llm.layers))
    for block in blocks:
        join_(block)
        give_back()
    try:
        choices = compiled_choices(blocks, int8_activations=int8_activations)
    except RuntimeError as reason:
        logger.info("tokens are decoded layer by layer: %s", reason)
        return llm, optimize_(llm, max_memory=max_memory, int8_activations=int8_activations)
    needed = sum(each.bytes for row in choices for each in row)
    if max_memory is not None and needed > max_memory:
        raise ValueError(
            f"packed weights take {needed:.0f} bytes, more than the {max_memory:.0f} that max_memory leaves: allow more"
        )
    del llm.layers[:]
    return compiled(llm, blocks, choices)


def compiled_choices(blocks: list[Block], *, int8_activations: bool) -> list[list[KernelChoice]]:
    """The compiled kernel for each product of each block. Raises: RuntimeError where it cannot be had."""
    from nvila_kernels.cpu import token_program  # and with it a compiler

    if not int8_activations:
        raise RuntimeError("compiled products round activations to 8 bits")
    choices = [[compiled_choice(shape_of(each)) for each in products_of(block).values()] for block in blocks]
    token_program()
    return choices


def products_of(block: Block) -> dict[str, Int4Linear]:
    """The four products of a joined block, by name. Raises: RuntimeError if not all of them have 4 bits."""
    joined = isinstance(cast(nn.Module, block.self_attn), JoinedAttention) and isinstance(block.mlp, JoinedMLP)
    layers = {name: block.get_submodule(name) for name in PRODUCTS} if joined else {}
    found = {name: layer for name, layer in layers.items() if isinstance(layer, Int4Linear)}
    if len(found) < len(PRODUCTS):
        raise RuntimeError("not all layers of a block have 4 bits, and the same groups where they read the same")
    return found


def compiled(
    llm: Qwen2, blocks: list[Block], choices: list[list[KernelChoice]]
) -> tuple[OptimizedQwen2, tuple[OptimizedLayer, ...]]:
    """A language model of blocks, which are taken out of the list."""
    from nvila_kernels.cpu import DecoderBlocks

    heads = blocks[0].self_attn.heads
    norms = [norm for block in blocks for norm in (block.input_layernorm, block.post_attention_layernorm)]
    stacked = torch.stack([norm.weight.detach().float() for norm in (*norms, llm.norm)])
    layers: list[Block] = []
    done: list[OptimizedLayer] = []
    arena = Arena()
    for row in choices:
        block = blocks.pop(0)
        for name, choice in zip(PRODUCTS, row, strict=True):
            layer = cast(Int4Linear, block.get_submodule(name))
            block.set_submodule(name, PackedLinear.of(layer, pack_layer(layer, choice, arena)))
            done.append(OptimizedLayer(name=f"layers.{len(layers)}.{name}", choice=choice))
            del layer
        layers.append(block)
        give_back()
    packed = [[cast(PackedLinear, block.get_submodule(name)) for name in PRODUCTS] for block in layers]
    tokens = DecoderBlocks(
        weights=[[each.weight for each in products] for products in packed],
        norms=stacked,
        biases=DecoderBlocks.filled([qkv.bias for qkv, *_ in packed], packed[0][0].out_features),
        frequencies=rotary_frequencies(head_dim=llm.head_dim, theta=llm.rope_theta, factor=llm.rope_factor),
        heads=heads,
        kv_heads=llm.kv_heads,
        eps=llm.norm.eps,
    )
    return OptimizedQwen2(llm, layers, tokens), tuple(done)


def optimize_head(llm: Qwen2, *, int8_activations: bool = True) -> OptimizedLayer:
    """The output head with a rough copy of 4 bits."""
    weight = llm.embed_tokens.weight if llm.lm_head is None else llm.lm_head.weight
    head = screened(weight, int8_activations=int8_activations)
    llm.lm_head = cast(nn.Linear, head)
    return OptimizedLayer(name="lm_head.rough", choice=cast(PackedLinear, head.rough).weight.choice)


def screened(weight: Tensor, *, int8_activations: bool = True) -> ScreenedHead:
    """A head for one token at a time."""
    rough = packed_copy(weight, group_size=GROUP, phases=("decode",), int8_activations=int8_activations)
    return ScreenedHead(rough, weight)
