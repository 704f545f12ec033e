"""Qwen2 in plain torch: the one network this project owns.

Quantized kernels, FP8 and sample packing all reach into the language model, so it is written out here
instead of being borrowed: a decoder of pre-norm blocks with grouped-query attention, rotary positions and a
gated MLP. Parameter names are those of the published checkpoints without their leading ``model.``.

Source: Qwen2 technical report (arXiv 2407.10671); equal to ``transformers``' ``Qwen2ForCausalLM``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nvila_model.network.cache import Cache, KVCache
from nvila_model.network.masks import causal_mask


class RMSNorm(nn.Module):
    """``x / sqrt(mean(x^2) + eps) * weight``, the mean in float32.

    Shapes: ``[..., width]`` -> the same, in the dtype of ``x``.
    """

    def __init__(self, width: int, *, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self.eps)
        return self.weight * (x.float() * scale).to(x.dtype)


def rotary_frequencies(*, head_dim: int, theta: float, factor: float, device: torch.device | None = None) -> Tensor:
    """Angle a position, ``theta^(-2i / head_dim) / factor``: float32 ``[head_dim / 2]``."""
    exponents = torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim
    return 1.0 / (theta**exponents * factor)


def rotary_angles(
    positions: Tensor, *, head_dim: int, theta: float, factor: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of ``position / factor * theta^(-2i / head_dim)``, once for all layers.

    Shapes: positions ``[b, t]`` int64 -> two ``[b, 1, t, head_dim]``, computed in float32.
    """
    frequencies = rotary_frequencies(head_dim=head_dim, theta=theta, factor=factor, device=positions.device)
    angles = positions[:, None, :, None].float() * frequencies
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair ``(x[i], x[i + d/2])`` by its angle. Shapes: ``[b, heads, t, head_dim]`` -> the same."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


class Attention(nn.Module):
    """Causal attention with fewer key-value heads than query heads (grouped-query attention)."""

    def __init__(self, width: int, *, heads: int, kv_heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads
        self.q_proj = nn.Linear(width, heads * head_dim)
        self.k_proj = nn.Linear(width, kv_heads * head_dim)
        self.v_proj = nn.Linear(width, kv_heads * head_dim)
        self.o_proj = nn.Linear(heads * head_dim, width, bias=False)

    def project(self, x: Tensor) -> Sequence[Tensor]:
        """Queries, keys and values, all heads side by side."""
        return self.q_proj(x), self.k_proj(x), self.v_proj(x)

    def forward(
        self, x: Tensor, angles: tuple[Tensor, Tensor], mask: Tensor | None, cache: KVCache | None, layer: int
    ) -> Tensor:
        queries, keys, values = self.project(x)
        q = rotate(rearrange(queries, "b t (h d) -> b h t d", h=self.heads), *angles)
        k = rotate(rearrange(keys, "b t (h d) -> b h t d", h=self.kv_heads), *angles)
        v = rearrange(values, "b t (h d) -> b h t d", h=self.kv_heads)
        return self.o_proj(attend(q, k, v, mask, cache, layer))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, cache: KVCache | None, layer: int) -> Tensor:
    """What is between the products of attention. Shapes: ``[b, heads, t, d]``, rotated -> ``[b, t, heads * d]``."""
    if cache is not None:
        k, v = cache.update(layer, k, v)
    if q.shape[2] == 1:
        return attend_once(q, k, v, mask)
    shared = q.shape[1] != k.shape[1]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=shared)
    return rearrange(out, "b h t d -> b t (h d)")


def attend_once(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """One position a row: heads that share keys become queries of one head, so that keys are read once for all."""
    grouped = rearrange(q, "b (kv group) 1 d -> b kv group d", kv=k.shape[1])
    out = F.scaled_dot_product_attention(grouped, k, v, attn_mask=mask)
    return rearrange(out, "b kv group d -> b 1 (kv group d)")


class GatedMLP(nn.Module):
    """``down(silu(gate(x)) * up(x))``."""

    def __init__(self, width: int, *, mlp_width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(width, mlp_width, bias=False)
        self.up_proj = nn.Linear(width, mlp_width, bias=False)
        self.down_proj = nn.Linear(mlp_width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One layer: attention, then the gated MLP, each after a norm and added to what went in."""

    def __init__(self, width: int, *, heads: int, kv_heads: int, head_dim: int, mlp_width: int, eps: float) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(width, eps=eps)
        self.self_attn = Attention(width, heads=heads, kv_heads=kv_heads, head_dim=head_dim)
        self.post_attention_layernorm = RMSNorm(width, eps=eps)
        self.mlp = GatedMLP(width, mlp_width=mlp_width)

    def forward(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: KVCache | None,
        layer: int,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """The states after the block, ``[b, t, width]``; of the ``wanted`` positions alone, ``[n, width]``."""
        x = x + self.self_attn(self.input_layernorm(x), angles, mask, cache, layer)
        if wanted is not None:
            x = x[wanted]
        return x + self.mlp(self.post_attention_layernorm(x))


class Qwen2(nn.Module):
    """The language model: embeddings in, hidden states out; ``logits`` turns those into scores.

    Args:
        vocab_size: rows of the embedding (after media tokens were added).
        width: channels of the residual stream (``hidden_size``).
        heads, kv_heads: query heads, and the key-value heads that they share in groups.
        mlp_width: ``intermediate_size``.
        tied: the output head is the embedding.
        rope_theta: base of the rotary frequencies.
        rope_factor: linear scaling; position ``p`` is seen as ``p / rope_factor``.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        width: int,
        layers: int,
        heads: int,
        kv_heads: int,
        mlp_width: int,
        tied: bool = False,
        eps: float = 1e-6,
        rope_theta: float = 1e6,
        rope_factor: float = 1.0,
        head_dim: int | None = None,
    ) -> None:
        super().__init__()
        if heads % kv_heads:
            raise ValueError(f"{heads} query heads cannot be shared by {kv_heads} key-value heads: use a divisor")
        self.head_dim = head_dim or width // heads
        self.kv_heads = kv_heads
        self.depth = layers
        self.rope_theta, self.rope_factor = rope_theta, rope_factor
        self.gradient_checkpointing = False
        self.embed_tokens = nn.Embedding(vocab_size, width)
        self.layers = nn.ModuleList(
            Block(width, heads=heads, kv_heads=kv_heads, head_dim=self.head_dim, mlp_width=mlp_width, eps=eps)
            for _ in range(layers)
        )
        self.norm = RMSNorm(width, eps=eps)
        self.lm_head = None if tied else nn.Linear(width, vocab_size, bias=False)

    @property
    def dtype(self) -> torch.dtype:
        return self.norm.weight.dtype  # an embedding may keep the type of its file

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.weight.device

    @property
    def vocab_size(self) -> int:
        return self.embed_tokens.num_embeddings

    def cache(self, batch: int, length: int) -> Cache:
        """A key-value cache for ``batch`` rows of at most ``length`` positions."""
        return KVCache(
            layers=self.depth, batch=batch, heads=self.kv_heads, length=length,
            head_dim=self.head_dim, dtype=self.dtype, device=self.device,
        )  # fmt: skip

    def forward(
        self,
        embeds: Tensor,
        *,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
        wanted: Tensor | None = None,
    ) -> Tensor:
        """Hidden states after the final norm, ``[b, t, width]``; ``[n, width]`` where only some are wanted.

        Args:
            embeds: ``[b, t, width]``.
            positions: ``[b, t]`` int64; by default they go on from what the cache holds.
            mask: bool ``[b, 1, t, cached + t]``, True where a query may look; None means plain causal.
            cache: keys and values of earlier positions; grows by ``t``.
            wanted: bool ``[b, t]``, the ``n`` positions whose states are needed, given in reading order: nobody looks
                at the others after the last attention, so the last MLP leaves them out.
        """
        start = 0 if cache is None else cache.length
        if mask is None and start and embeds.shape[1] > 1:
            mask = causal_mask(embeds.shape[1], start, device=embeds.device)
        states = self.norm(self.blocks(embeds, self.angles(embeds, start, positions), mask, cache, wanted))
        if cache is not None:
            cache.advance(embeds.shape[1])
        return states

    def blocks(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: Cache | None,
        wanted: Tensor | None,
    ) -> Tensor:
        """The states after the last block."""
        last, stored = len(self.layers) - 1, cast(KVCache | None, cache)
        for index, layer in enumerate(self.layers):
            kept = wanted if index == last else None
            if self.gradient_checkpointing and self.training:
                x = checkpoint(layer, x, angles, mask, stored, index, kept, use_reentrant=False)
            else:
                x = layer(x, angles, mask, stored, index, kept)
        return x

    def hidden_states(self, embeds: Tensor) -> list[Tensor]:
        """The ``layers + 1`` states of plain causal attention: embeddings first, the last one normed."""
        angles = self.angles(embeds, 0, None)
        states = [embeds]
        for index, layer in enumerate(self.layers):
            states.append(layer(states[-1], angles, None, None, index))
        return [*states[:-1], self.norm(states[-1])]

    def angles(self, embeds: Tensor, start: int, positions: Tensor | None) -> tuple[Tensor, Tensor]:
        """Rotary angles of ``positions``, or of those from ``start`` on."""
        if positions is None:
            positions = torch.arange(start, start + embeds.shape[1], device=embeds.device)[None]
        return rotary_angles(
            positions, head_dim=self.head_dim, theta=self.rope_theta, factor=self.rope_factor, dtype=embeds.dtype
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token. Shapes: ``[..., width]`` -> ``[..., vocab_size]``."""
        if self.lm_head is None:
            return F.linear(hidden, self.embed_tokens.weight)
        return self.lm_head(hidden)
