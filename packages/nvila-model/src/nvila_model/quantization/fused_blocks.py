"""Blocks of a vision tower in W8A8 whose seams are single kernels.

Quantizing activations is a pass over memory, and in a block of SigLIP each of them follows one that is made anyway:

    LayerNorm, quantize      -> qkv, fc1     one kernel, ``layer_norm_quantize``
    GELU, quantize           -> fc2          one kernel, ``gelu_quantize``; or the end of fc1's product,
                                             ``int8_linear_requantize``, where fc2 has a scale known beforehand
    attention, quantize      -> proj         ``quantize_rows``; attention runs in half precision on a GPU

Each seam is fused where the layer that reads it has 8-bit weights, and is computed layer by layer elsewhere: after
``nvila_kernels.cpu.optimize_`` has packed the layers, with an adapter around one, or with the exact form of GELU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from nvila_kernels import Int8Linear, ops
from torch import Tensor, nn

from nvila_model.network.vision import Block, VisionTower, attend


class FusedBlock(Block):
    """The same function as a ``Block`` of 8-bit layers, and the same names of parts and tensors.

    Args:
        block: whose parts it takes over.

    Shapes: ``[n, patches, width]`` -> the same. No gradients pass through fused seams.
    """

    def __init__(self, block: Block) -> None:
        nn.Module.__init__(self)
        self.norm1, self.attn, self.norm2, self.mlp = block.norm1, block.attn, block.norm2, block.mlp
        self.train(block.training)

    def forward(self, x: Tensor) -> Tensor:
        half = torch.float16 if x.is_cuda and x.dtype == torch.float32 else x.dtype
        qkv = normalized_product(self.norm1, self.attn.qkv, x, dtype=half)
        x = x + self.attn.proj(attend(qkv, heads=self.attn.heads)).to(x.dtype)
        if not (isinstance(self.mlp.fc2, Int8Linear) and self.mlp.act.approximate == "tanh"):
            return x + self.mlp.fc2(self.mlp.act(normalized_product(self.norm2, self.mlp.fc1, x, dtype=x.dtype)))
        return x + self.expanded(x)

    def expanded(self, x: Tensor) -> Tensor:
        """``fc2(gelu(fc1(norm(x))))``; fc2 reads 8-bit codes."""
        fc1, fc2 = cast(nn.Module, self.mlp.fc1), cast(Int8Linear, self.mlp.fc2)
        if fc2.x_scale is not None and reads_rows(fc1):
            rows = x.flatten(0, -2)
            codes, scale = normalized_codes(self.norm2, rows)
            codes = ops.int8_linear_requantize(codes, scale, *weight_of(fc1), True, fc2.x_scale)
            return product(fc2, codes, fc2.x_scale, x.dtype).unflatten(0, x.shape[:-1])
        hidden = normalized_product(self.norm2, fc1, x, dtype=x.dtype)
        if fc2.x_scale is not None:
            return fc2(F.gelu(hidden, approximate="tanh"))
        codes, scale = ops.gelu_quantize(hidden.flatten(0, -2))
        return product(fc2, codes, scale, x.dtype).unflatten(0, x.shape[:-1])


def fuse_(tower: nn.Module) -> None:
    """Replace every block of a ``VisionTower`` that has an 8-bit layer, in place; any other module stays as it is."""
    if not isinstance(tower, VisionTower):
        return
    for number, block in enumerate(tower.blocks):
        if type(block) is Block and any(isinstance(layer, Int8Linear) for layer in block.modules()):
            tower.blocks[number] = FusedBlock(block)


def reads_rows(layer: nn.Module) -> bool:
    """Whether a layer quantizes each row of its input by itself, as the fused norm does; its GELU is apart."""
    return isinstance(layer, Int8Linear) and layer.x_scale is None and not layer.gelu


def normalized_product(norm: nn.LayerNorm, layer: nn.Module, x: Tensor, *, dtype: torch.dtype) -> Tensor:
    """``layer(norm(x))`` in a type. Shapes: ``[..., k]`` -> ``[..., n]``."""
    if not reads_rows(layer):
        return cast(Callable[[Tensor], Tensor], layer)(norm(x)).to(dtype)
    codes, scale = normalized_codes(norm, x.flatten(0, -2))
    return product(cast(Int8Linear, layer), codes, scale, dtype).unflatten(0, x.shape[:-1])


def normalized_codes(norm: nn.LayerNorm, rows: Tensor) -> tuple[Tensor, Tensor]:
    """``quantize(norm(rows))``: int8 ``[m, padded k]`` and a float32 scale a row."""
    return ops.layer_norm_quantize(rows, norm.weight, norm.bias, norm.eps)


def product(layer: Int8Linear, codes: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """What an 8-bit layer makes of codes. Shapes: int8 ``[m, padded k]`` -> ``[m, n]``."""
    return ops.int8_linear(codes, scale, *weight_of(layer), False, dtype)


def weight_of(layer: nn.Module) -> tuple[Tensor, Tensor, Tensor | None]:
    layer = cast(Int8Linear, layer)
    return layer.weight, layer.weight_scale, layer.bias
