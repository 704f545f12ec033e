"""The attention that tokens receive in a host's tower, for compressors that rank by it.

Fused attention does not hand out its weights. So the one layer whose output the projector reads is made to compute
eagerly, by a configuration of its own; all others stay as they are. Where a host makes one token of a square of
patches, the token has the mean of what they received.
"""

import copy
from math import isqrt, prod
from typing import Any, cast

from einops import rearrange
from torch import Tensor, nn

from nvila_compress.adapters.after_projector import TokenCompression
from nvila_compress.choose.attention import attention_received
from nvila_compress.contract import GridError


class TowerAttention:
    """A forward hook of one attention module of the tower: what it saw last, ``[tiles, patches]``."""

    def __init__(self, compression: TokenCompression, module: nn.Module) -> None:
        self.compression = compression
        self.module: Any = module
        self.config = self.module.config
        self.received: Tensor | None = None

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        weights = cast(Tensor | None, output[1])
        if weights is None:
            raise ValueError(f"{type(module).__name__} hands out no attention: use a newer transformers")
        tokens = weights.shape[-1]
        self.received = attention_received(weights, class_token=isqrt(tokens) ** 2 != tokens).detach()

    def of_tokens(self, grid: tuple[int, int]) -> Tensor:
        """``[tiles, h*w]``, for tokens that each stand for a square of patches."""
        received = self.patches()
        side = isqrt(received.shape[1] // prod(grid))
        if side * side * prod(grid) != received.shape[1]:
            raise GridError(f"{received.shape[1]} patches are no squares of {grid[0]} x {grid[1]} tokens")
        squares = rearrange(received, "b (h i w j) -> b (h w) (i j)", h=grid[0], w=grid[1], i=side, j=side)
        return squares.mean(dim=2)

    def patches(self) -> Tensor:
        assert self.received is not None, "the tower runs before the projector"
        return self.received

    def eager(self) -> None:
        """Let this layer compute its weights, which fused attention does not."""
        self.module.config = copy.copy(self.config)
        self.module.config._attn_implementation = "eager"

    def restore(self) -> None:
        self.module.config = self.config


def watch(owner: nn.Module, tower: str, compression: TokenCompression) -> TowerAttention | None:
    """Hook the tower's layer that the projector reads, if the compressor needs it."""
    if "attention" not in cast(Any, compression.compressor).needs:
        return None
    layers = next(
        module
        for module in owner.get_submodule(tower).modules()
        if isinstance(module, nn.ModuleList) and len(module) and attention_of(module[0]) is not None
    )
    layer: Any = getattr(cast(Any, owner).config, "vision_feature_layer", -1)
    index = cast(list[int], layer)[0] if isinstance(layer, list | tuple) else cast(int, layer)
    module = attention_of(layers[index if index < 0 else index - 1])
    assert module is not None
    hook = TowerAttention(compression, module)
    hook.eager()
    module.register_forward_hook(hook)
    return hook


def attention_of(layer: nn.Module) -> nn.Module | None:
    """The self-attention of a layer of a tower."""
    module = getattr(layer, "self_attn", None) or getattr(layer, "attention", None)
    return module if isinstance(module, nn.Module) else None
