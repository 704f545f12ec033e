"""SigLIP in plain torch: the vision tower, cut where NVILA reads it.

NVILA takes the hidden state before the last layer and before the final norm; what comes after that point is neither
built nor computed. The tower is written out here because quantized kernels reach into its blocks: a LayerNorm and
the one product for queries, keys and values that follows it can run as one kernel, and so can GELU with ``fc2``.
Published SigLIP weights use the tanh form of GELU; the exact form would move features by 4e-4.

Source: SigLIP (arXiv 2303.15343); equal to ``transformers``' ``SiglipVisionModel`` and to open-clip's towers.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from nvila_model.network.meta import meta_device

Gelu: TypeAlias = Literal["tanh", "none"]


class Attention(nn.Module):
    """Every patch attends to every patch of its tile. Shapes: ``[n, patches, width]`` -> the same."""

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(attend(self.qkv(x), heads=self.heads))


def attend(qkv: Tensor, *, heads: int) -> Tensor:
    """Softmax attention between the two products. Shapes: ``[n, t, 3 * width]`` -> ``[n, t, width]``."""
    q, k, v = rearrange(qkv, "n t (three h d) -> three n h t d", three=3, h=heads)
    return rearrange(F.scaled_dot_product_attention(q, k, v), "n h t d -> n t (h d)")


class MLP(nn.Module):
    """``fc2(gelu(fc1(x)))``."""

    def __init__(self, width: int, *, mlp_width: int, gelu: Gelu) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, mlp_width)
        self.act = nn.GELU(approximate=gelu)
        self.fc2 = nn.Linear(mlp_width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """Attention and MLP, each after a LayerNorm and added to its input."""

    def __init__(self, width: int, *, heads: int, mlp_width: int, eps: float, gelu: Gelu) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads=heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = MLP(width, mlp_width=mlp_width, gelu=gelu)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTower(nn.Module):
    """Features of image tiles, one a patch.

    Args:
        image_size: side of a tile in pixels.
        patch_size: side of a patch in pixels; pixels that fill no patch are not seen.
        width: channels of the features (``hidden_size``).
        layers: blocks, all of which are computed.
        heads: of attention; a divisor of ``width``.
        mlp_width: ``intermediate_size``.
        eps: of every LayerNorm.
        gelu: ``"tanh"``, the form of published weights, or ``"none"``, the exact one.

    Shapes: pixels ``[n, 3, size, size]`` -> ``[n, (size // patch)^2, width]``.
    Raises: ValueError if the tiles are not of the tower's size.
    Source: NVILA, section 2; SigLIP (arXiv 2303.15343).
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        width: int,
        layers: int,
        heads: int,
        mlp_width: int,
        eps: float = 1e-6,
        gelu: Gelu = "tanh",
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"{heads} heads cannot share {width} channels: use a divisor")
        self.image_size, self.patch_size, self.width = image_size, patch_size, width
        self.patch_embedding = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)
        self.position_embedding = nn.Parameter(torch.empty(self.side**2, width))
        self.blocks = nn.ModuleList(
            Block(width, heads=heads, mlp_width=mlp_width, eps=eps, gelu=gelu) for _ in range(layers)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Positions and matrices from a normal distribution of 0.02, biases zero, as vision transformers begin."""
        nn.init.trunc_normal_(self.position_embedding, std=0.02)
        for module in self.blocks.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    @classmethod
    def siglip(cls, *, layers: int, select_layer: int = -2, **sizes: Any) -> VisionTower:
        """A SigLIP with random weights, up to the layer that is read.

        Args:
            layers: of the published tower.
            select_layer: whose output is read, counted from the end; the blocks after it are not built.
            sizes: the other arguments of the class.

        Raises: ValueError if there is no such layer.
        """
        return cls(layers=depth(layers, select_layer), **sizes)

    @classmethod
    def from_open_clip(cls, name: str, *, pretrained: str | None = None, select_layer: int = -2) -> VisionTower:
        """The image tower of an open-clip SigLIP model, cut at ``select_layer``.

        Args:
            name: as ``open_clip.list_models()`` has it, such as ``ViT-SO400M-14-SigLIP-384``.
            pretrained: which weights, such as ``webli``; None draws them.

        Raises: ValueError if open-clip has no such model, or its tower is no SigLIP.
        """
        from nvila_model.network.open_clip import siglip_tower

        sizes, tensors = siglip_tower(name, pretrained=pretrained)
        with meta_device():
            tower = cls.siglip(**sizes, select_layer=select_layer)
        tower.load_state_dict({name: tensors[name] for name in tower.state_dict()}, assign=True)
        return tower

    @property
    def side(self) -> int:
        """Patches along one side of a tile."""
        return self.image_size // self.patch_size

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.embed(pixels)
        for block in self.blocks:
            x = block(x)
        return x

    def hidden_states(self, pixels: Tensor) -> list[Tensor]:
        """The state after each block (not the embeddings), ``[n, patches, width]`` each."""
        x, states = self.embed(pixels), []
        for block in self.blocks:
            x = block(x)
            states.append(x)
        return states

    def embed(self, pixels: Tensor) -> Tensor:
        """Patches as channels, with their positions: what the first block reads."""
        if pixels.ndim != 4 or pixels.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"tiles of shape {list(pixels.shape)} do not fit this tower: "
                f"give [n, 3, {self.image_size}, {self.image_size}]"
            )
        patches = self.patch_embedding(pixels.to(self.patch_embedding.weight.dtype))
        return rearrange(patches, "n c h w -> n (h w) c") + self.position_embedding


def depth(layers: int, select_layer: int) -> int:
    """Blocks up to the layer that is read. Raises: ValueError if there is no such layer."""
    built = layers + 1 + select_layer
    if not 1 <= built <= layers:
        raise ValueError(f"select_layer {select_layer} leaves {built} of {layers} layers: use -{layers} to -1")
    return built
