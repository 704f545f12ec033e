"""Token merging inside a vision tower, where it saves work in every layer that follows.

``ToMe`` merges what a tower has made. ``patch_tower`` merges in each block of a ViT of open-clip or timm, between
attention and feed-forward layer: the keys that the attention computed anyway say which tokens are alike, and a token
that stands for ``s`` others has its score raised by ``log s`` in every later softmax, so that it weighs as they did.

A block is patched by giving it a subclass of its own class. Weights, names and hooks stay; ``unpatch_tower`` gives
the class back, and the tower is bit for bit what it was.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from nvila_compress.choose.similarity import cosines
from nvila_compress.merge.pairs import mean_of_groups
from nvila_compress.merge.tome import match


class MergeState:
    """What the blocks of one patched tower share: how much to merge, and how many each token stands for by now.

    ``r`` may be set at any time. After a forward pass ``sizes`` is ``[b, n]``: the number of patches in each token
    that came out, special tokens first.
    """

    def __init__(self, r: int, protected: int) -> None:
        self.r = r
        self.protected = protected
        self.sizes: Tensor | None = None


def patch_tower(tower: nn.Module, r: int) -> MergeState:
    """Merge ``r`` pairs of tokens in each block of a ViT, in place.

    Class and register tokens are never merged. A block merges at most half of what is left. Attention is weighted by
    the number of patches that a key stands for ("proportional attention").

    Args:
        tower: a ``VisionTransformer`` of timm or open-clip, or a model that holds exactly one of them.
        r: pairs a block. ``merged_count`` says what comes out.

    Returns: the state that the blocks share; its ``r`` may be changed.
    Raises: ValueError for a tower of another kind, one that is patched already, and a negative ``r``.
    Source: Bolya et al., Token Merging (arXiv 2210.09461), sections 3 and 3.1.
    """
    if r < 0:
        raise ValueError(f"r {r} < 0: pass how many pairs of tokens each block merges")
    vit, blocks, protected, patched = _blocks_of(tower)
    if isinstance(blocks[0], _Merging):
        raise ValueError(f"this {type(vit).__name__} is patched already: unpatch_tower it, or set the r of its state")
    state = MergeState(r, protected)
    for block in blocks:
        block.__class__ = type(f"Merging{type(block).__name__}", (patched, type(block)), {})
        cast(Any, block).merging = state
        cast(Any, block).starts = block is blocks[0]
    return state


def unpatch_tower(tower: nn.Module) -> None:
    """Undo ``patch_tower``.

    Raises: ValueError for a tower that is not patched.
    """
    vit, blocks, _, _ = _blocks_of(tower)
    if not isinstance(blocks[0], _Merging):
        raise ValueError(f"this {type(vit).__name__} is not patched: nothing to undo")
    for block in blocks:
        del cast(Any, block).merging, cast(Any, block).starts
        block.__class__ = type(block).__bases__[1]


def merged_count(tokens: int, *, blocks: int, r: int, protected: int = 0) -> int:
    """Tokens that come out of a patched tower, special tokens among them.

    Args:
        tokens: that go in, special tokens among them.
        blocks: how many blocks the tower has.
        r: pairs that each merges.
        protected: class and register tokens.
    """
    for _ in range(blocks):
        tokens -= min(r, (tokens - protected) // 2)
    return tokens


class _Merging:
    """A block that merges between its two halves."""

    merging: MergeState
    starts: bool

    def merge(self, x: Tensor, keys: Tensor) -> Tensor:
        """``[b, n, c]`` with keys ``[b, n, d]`` -> ``[b, n - r, c]``; the sizes follow."""
        state, p = self.merging, self.merging.protected
        sizes = state.sizes
        if sizes is None:
            sizes = x.new_ones(x.shape[:2], dtype=torch.float32)
        r = min(state.r, (x.shape[1] - p) // 2)
        if r > 0:
            with torch.no_grad():
                kept, to = match(cosines(keys[:, p::2].float(), keys[:, p + 1 :: 2].float()), r)
            merged = mean_of_groups(x[:, p:], sizes[:, p:], to, kept.shape[1])
            grown = sizes.new_zeros(kept.shape).scatter_add(1, to, sizes[:, p:])
            x, sizes = torch.cat([x[:, :p], merged], dim=1), torch.cat([sizes[:, :p], grown], dim=1)
        state.sizes = sizes
        return x

    def bias(self, x: Tensor, attn_mask: Tensor | None) -> Tensor | None:
        """What is added to the scores: the log of the sizes, ``[b, 1, 1, n]``; in the first block all are 1."""
        if attn_mask is not None:
            raise ValueError("a patched tower takes no attention mask: unpatch_tower it first")
        if self.starts:
            self.merging.sizes = None
        sizes = self.merging.sizes
        return None if sizes is None else sizes.log().to(x.dtype)[:, None, None]


class _MergingTimm(_Merging):
    """timm's ``Block``."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        block = cast(Any, self)
        attended, keys = self.attend(block.norm1(x), self.bias(x, attn_mask))
        x = x + block.drop_path1(block.ls1(attended))
        x = self.merge(x, keys)
        return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))

    def attend(self, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        attn = cast(Any, self).attn
        q, k, v = rearrange(attn.qkv(x), "b n (three h d) -> three b h n d", three=3, h=attn.num_heads)
        q, k = attn.q_norm(q), attn.k_norm(k)
        dropout = attn.attn_drop.p if attn.training else 0.0
        y = rearrange(
            F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout), "b h n d -> b n (h d)"
        )
        return attn.proj_drop(attn.proj(getattr(attn, "norm", nn.Identity())(y))), k.mean(dim=1)


class _MergingOpenCLIP(_Merging):
    """open-clip's ``ResidualAttentionBlock``."""

    def forward(self, q_x: Tensor, k_x: None = None, v_x: None = None, attn_mask: Tensor | None = None) -> Tensor:
        block = cast(Any, self)
        x = q_x if block.attn.batch_first else q_x.transpose(0, 1)
        attended, keys = self.attend(block.ln_1(x), self.bias(x, attn_mask))
        x = self.merge(x + block.ls_1(attended), keys)
        x = x + block.ls_2(block.mlp(block.ln_2(x)))
        return x if block.attn.batch_first else x.transpose(0, 1)

    def attend(self, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        attn = cast(nn.MultiheadAttention, cast(Any, self).attn)
        projected = F.linear(x, attn.in_proj_weight, attn.in_proj_bias)
        q, k, v = rearrange(projected, "b n (three h d) -> three b h n d", three=3, h=attn.num_heads)
        y = rearrange(F.scaled_dot_product_attention(q, k, v, attn_mask=bias), "b h n d -> b n (h d)")
        return attn.out_proj(y), k.mean(dim=1)


def _blocks_of(tower: nn.Module) -> tuple[nn.Module, list[nn.Module], int, type[_Merging]]:
    """The ViT within ``tower``, its blocks, its special tokens, and how its blocks are patched."""
    found: list[tuple[nn.Module, list[nn.Module], int, type[_Merging]]] = []
    for module in cast(Any, tower).modules():
        if type(module).__name__ != "VisionTransformer":
            continue
        if type(module).__module__.startswith("timm."):
            found.append((module, list(module.blocks), module.num_prefix_tokens, _MergingTimm))
        elif type(module).__module__.startswith("open_clip."):
            found.append((module, list(module.transformer.resblocks), 1, _MergingOpenCLIP))
    if len(found) != 1:
        raise ValueError(
            f"{type(tower).__name__} holds {len(found)} VisionTransformers of timm or open-clip: pass one, such as "
            "model.visual"
        )
    vit, blocks, _, patched = found[0]
    wanted = "Block" if patched is _MergingTimm else "ResidualAttentionBlock"
    name = blocks[0].__class__.__name__.removeprefix("Merging")
    gated = getattr(getattr(blocks[0], "attn", None), "gate", None) is not None
    if name != wanted or gated:
        raise ValueError(f"{type(vit).__name__} has blocks of kind {name}: only {wanted} without gates can merge")
    return found[0]
