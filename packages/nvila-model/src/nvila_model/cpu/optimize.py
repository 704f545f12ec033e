"""A quantized model on the fastest kernels of this machine's processor.

A language model decodes a token at a time and reads prompts of hundreds, a vision tower sees a thousand tokens a tile;
each layer is given to the kernel that is fastest at what its part does (``nvila_kernels.cpu``). Layers of the language
model that read the same input become one.
"""

from __future__ import annotations

from typing import cast

import torch
from nvila_kernels.cpu import OptimizedLayer, PackedLinear, PackedModule, optimize_
from nvila_kernels.cpu.memory import apart, give_back
from nvila_kernels.cpu.packed_linear import chosen
from nvila_kernels.cpu.packed_weight import prepare
from nvila_kernels.cpu.selection import MEMORY
from nvila_kernels.cpu.shape import shape_of
from nvila_kernels.quantization import Int4Codes, quantize_int4
from torch import Tensor, nn

from nvila_model.cpu.joined_layers import join_
from nvila_model.cpu.stacking import stack_of
from nvila_model.network.qwen2 import Qwen2
from nvila_model.network.vlm import VLM
from nvila_model.network.vocabulary import ScreenedHead

ROWS = 4096
"""Rows of the output head that are held as floats at a time."""
GROUP = 256
"""Weights that share a scale in the rough copy of the output head: it only has to find the best tokens."""


def optimize_model(
    model: VLM, *, memory: float | None = None, int8_activations: bool = True, head: bool = False
) -> tuple[OptimizedLayer, ...]:
    """Give every quantized layer of a model to the fastest kernel, in place; it can only answer from then on.

    Args:
        model: on the CPU. Layers of floats stay as they are.
        memory: packed weights may take so many times the layer's own bytes, so that 1.2 leaves room for one packing and
            3 for a second one that reads prompts. Without it, the language model is packed twice if prompts are read
            2.5 times as fast then, and all of it fits into a quarter of the machine's memory.
        int8_activations: whether 4-bit layers may round activations to 8 bits.
        head: screen tokens by an output head of 4 bits. A token reads all of it, and in floats it takes as long as
            half of the 4-bit layers. The scores of the best tokens are still those of the head itself.

    Returns: the kernels of each layer.
    Raises: ValueError if its blocks are graphs already.
    """
    with apart():
        done = optimize_language(model.llm, memory=memory, int8_activations=int8_activations)
        lines = [OptimizedLayer(name=f"llm.{each.name}", choice=each.choice) for each in done]
        if head:
            lines.append(optimize_head(model, int8_activations=int8_activations))
    done = optimize_(cast(nn.Module, model.vision), phases=("prefill",), memory=MEMORY if memory is None else memory)
    lines += [OptimizedLayer(name=f"vision.{each.name}", choice=each.choice) for each in done]
    return tuple(lines)


def optimize_language(
    llm: Qwen2, *, memory: float | None = None, int8_activations: bool = True
) -> list[OptimizedLayer]:
    """The blocks of a language model, as graphs where one kernel is best for all of their layers.

    Raises: ValueError if they are graphs already.
    """
    if llm.stack is not None:
        raise ValueError("the language model was settled before: load it again to choose other kernels")
    for block in llm.layers:
        join_(block)
        give_back()
    llm.stack = stack_of(llm, memory=memory, int8_activations=int8_activations)
    if llm.stack is None:
        limit = MEMORY if memory is None else memory
        return list(optimize_(llm, memory=limit, int8_activations=int8_activations))
    return [
        OptimizedLayer(name=name, choice=each.prepared.choice)
        for name, each in llm.stack.named_modules(prefix="stack")
        if isinstance(each, PackedModule)
    ]


def optimize_head(model: VLM, *, int8_activations: bool = True) -> OptimizedLayer:
    """The output head with a rough copy of 4 bits."""
    llm = model.llm
    weight = llm.embed_tokens.weight if llm.lm_head is None else llm.lm_head.weight
    head = screened(weight, int8_activations=int8_activations)
    llm.lm_head = cast(nn.Linear, head)
    return OptimizedLayer(name="llm.lm_head.rough", choice=cast(PackedLinear, head.rough).prepared.choice)


@torch.no_grad()
def screened(weight: Tensor, *, int8_activations: bool = True) -> ScreenedHead:
    """A head for one token at a time. It is quantized some rows at a time: in floats the vocabulary takes gigabytes."""
    rows, width = weight.shape
    group = min(GROUP, width)
    groups = -(-width // group)
    codes = Int4Codes(
        codes=torch.empty(rows, width, dtype=torch.uint8),
        scale=torch.empty(rows, groups, dtype=torch.float16),
        zero=torch.empty(rows, groups, dtype=torch.uint8),
        group_size=group,
    )
    for start in range(0, rows, ROWS):
        some = slice(start, start + ROWS)
        part = quantize_int4(weight[some].float(), group_size=group)
        codes.codes[some], codes.scale[some], codes.zero[some] = part.codes, part.scale, part.zero
    choice = chosen(shape_of(codes), phases=("decode",), int8_activations=int8_activations)
    rough = PackedLinear(prepare(codes, choice), in_features=width, out_features=rows, bias=None)
    del codes
    return ScreenedHead(rough, weight)
