"""The vision tower: SigLIP on a timm trunk, as open-clip builds it, cut where NVILA reads it.

NVILA takes the hidden state before the last layer and before the final norm. The layers behind that point
are neither built nor computed. Published SigLIP weights use the tanh form of GELU although timm's own
variants default to the exact one; the difference moves embeddings by 4e-4, so the tanh form is asked for.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, cast

import timm
from torch import Tensor, nn

if TYPE_CHECKING:
    from timm.models.vision_transformer import VisionTransformer


class VisionTower(nn.Module):
    """Features of image tiles, one per patch.

    Args:
        trunk: a timm vision transformer without class token; its last block is the last one computed.

    Shapes: pixels ``[n, 3, size, size]`` -> ``[n, (size / patch)^2, width]``.
    Raises: ValueError if the tiles are not of the tower's size.
    Source: NVILA, section 2; SigLIP (arXiv 2303.15343).
    """

    def __init__(self, trunk: VisionTransformer) -> None:
        super().__init__()
        self.trunk = trunk

    @classmethod
    def siglip(
        cls,
        *,
        image_size: int,
        patch_size: int,
        width: int,
        layers: int,
        heads: int,
        mlp_width: int,
        eps: float = 1e-6,
        select_layer: int = -2,
    ) -> VisionTower:
        """A SigLIP tower with random weights, of ``layers + 1 + select_layer`` blocks."""
        depth = layers + 1 + select_layer
        if not 1 <= depth <= layers:
            raise ValueError(f"select_layer {select_layer} leaves {depth} of {layers} layers: use -{layers} to -1")
        trunk = timm.create_model(
            "vit_so400m_patch14_siglip_gap_448",
            img_size=image_size,
            patch_size=patch_size,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            mlp_ratio=(mlp_width + 0.5) / width,  # timm truncates the product
            act_layer="gelu_tanh",
            norm_layer=partial(nn.LayerNorm, eps=eps),
            global_pool="",
            num_classes=0,
        )
        return cls(without_final_norm(cast("VisionTransformer", trunk)))

    @classmethod
    def from_open_clip(cls, name: str, *, pretrained: str | None = None, select_layer: int = -2) -> VisionTower:
        """The image tower of an open-clip SigLIP model, cut at ``select_layer``."""
        import open_clip

        trunk = cast("VisionTransformer", open_clip.create_model(name, pretrained=pretrained).visual.trunk)  # pyright: ignore
        trunk.blocks = trunk.blocks[: len(trunk.blocks) + 1 + select_layer]
        return cls(without_final_norm(trunk))

    @property
    def image_size(self) -> int:
        return self.trunk.patch_embed.img_size[0]

    @property
    def patch_size(self) -> int:
        return self.trunk.patch_embed.patch_size[0]

    @property
    def side(self) -> int:
        """Patches along one side of a tile."""
        return self.image_size // self.patch_size

    @property
    def width(self) -> int:
        return self.trunk.embed_dim

    def forward(self, pixels: Tensor) -> Tensor:
        return self.hidden_states(pixels, last_only=True)[-1]

    def hidden_states(self, pixels: Tensor, *, last_only: bool = False) -> list[Tensor]:
        """The state after each block (not the embeddings), ``[n, patches, width]`` each."""
        if pixels.ndim != 4 or pixels.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"tiles of shape {list(pixels.shape)} do not fit this tower: "
                f"give [n, 3, {self.image_size}, {self.image_size}]"
            )
        count = len(self.trunk.blocks)
        indices = [count - 1] if last_only else list(range(count))
        weight = self.trunk.patch_embed.proj.weight
        states = self.trunk.forward_intermediates(
            pixels.to(weight.dtype), indices=indices, norm=False, output_fmt="NLC", intermediates_only=True
        )
        return cast("list[Tensor]", states)


def without_final_norm(trunk: VisionTransformer) -> VisionTransformer:
    """Drop what stands behind the last block; NVILA never reads it."""
    trunk.norm = nn.Identity()
    trunk.attn_pool = None
    trunk.head = nn.Identity()
    return trunk
