"""A quantized model on the fastest kernels of this machine's processor.

A language model decodes a token at a time and reads prompts of hundreds, a vision tower sees a thousand tokens a tile;
each layer is given to the kernel that is fastest at what its part does (``nvila_kernels.cpu``). Layers of the language
model that read the same input become one.
"""

from __future__ import annotations

from typing import cast

import torch
from nvila_kernels.cpu import Settled, SettledLinear, settle_
from nvila_kernels.cpu.choice import MEMORY
from nvila_kernels.cpu.prepared import Prepared
from nvila_kernels.cpu.settle import chosen
from nvila_kernels.quantization import Int8Codes, quantize_int8
from torch import Tensor, nn

from nvila_model.joined import join_
from nvila_model.nvila import NVILA

ROWS = 4096
"""Rows of the output head that are held as floats at a time."""


def settle_model(
    model: NVILA, *, memory: float = MEMORY, int8_activations: bool = True, head: bool = False
) -> tuple[Settled, ...]:
    """Give every quantized layer of a model to the fastest kernel, in place; it can only answer from then on.

    Args:
        model: on the CPU. Layers of floats stay as they are.
        memory: packed weights may take so many times the layer's own bytes.
        int8_activations: whether 4-bit layers may round activations to 8 bits.
        head: give the output head 8-bit weights as well. A token reads all of it, and in floats it takes as long as
            half of the 4-bit layers. A head that is tied to the embedding becomes a copy.

    Returns: the kernels of each layer.
    """
    join_(model.llm)
    done = settle_(model.llm, memory=memory, int8_activations=int8_activations)
    lines = [Settled(name=f"llm.{each.name}", choice=each.choice) for each in done]
    if head:
        lines.append(settle_head(model, memory=memory))
    done = settle_(cast(nn.Module, model.vision), phases=("prefill",), memory=memory)
    lines += [Settled(name=f"vision.{each.name}", choice=each.choice) for each in done]
    return tuple(lines)


def settle_head(model: NVILA, *, memory: float = MEMORY) -> Settled:
    """The output head in 8 bits, for one token at a time."""
    llm = model.llm
    weight = llm.embed_tokens.weight if llm.lm_head is None else llm.lm_head.weight
    head = int8_head(weight, memory=memory)
    llm.lm_head = cast(nn.Linear, head)
    return Settled(name="llm.lm_head", choice=head.prepared.choice)


@torch.no_grad()
def int8_head(weight: Tensor, *, memory: float = MEMORY) -> SettledLinear:
    """A layer of 8-bit weights, quantized a few rows at a time: in floats the vocabulary takes gigabytes."""
    rows, width = weight.shape
    codes = torch.empty(rows, width, dtype=torch.int8)
    scale = torch.empty(rows)
    for start in range(0, rows, ROWS):
        part = slice(start, start + ROWS)
        codes[part], scale[part] = quantize_int8(weight[part])
    eight = Int8Codes(codes=codes, scale=scale)
    prepared = Prepared(eight, chosen(eight, phases=("decode",), memory=memory))
    return SettledLinear(prepared, in_features=width, out_features=rows, bias=None)
