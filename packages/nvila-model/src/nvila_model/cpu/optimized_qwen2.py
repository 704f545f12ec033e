"""Qwen2 in 4 bits on a processor: a token is one compiled program, prompts go through its blocks in torch.

Both read the same packed weights. Prompts have hundreds of rows: there what lies between products is large, and torch
is good at it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Self
from weakref import WeakKeyDictionary

import torch
from nvila_kernels.cpu import refuse_devices, refuse_training
from torch import Tensor, nn
from torch.nn import functional as F

from nvila_model.network.cache import Cache, KVCache
from nvila_model.network.masks import causal_mask
from nvila_model.network.qwen2 import Block, Qwen2, rotary_angles

if TYPE_CHECKING:
    from nvila_kernels.cpu import DecoderBlocks, DecoderBuffers

ROWS = 16
"""Most rows of new positions that are decoded; more are read like prompts."""


class OptimizedQwen2(nn.Module):
    """Stands where a ``Qwen2`` stood, with the same protocol. It only answers, in float32, on the CPU.

    Args:
        llm: whose embedding, norm and output head it takes over; its blocks were taken out.
        layers: the blocks, their products packed.
        tokens: the same blocks as a compiled token reads them.

    Raises: ValueError when it is trained, saved, pickled or moved.
    """

    def __init__(self, llm: Qwen2, layers: Sequence[Block], tokens: DecoderBlocks) -> None:
        super().__init__()
        self.head_dim, self.kv_heads = llm.head_dim, llm.kv_heads
        self.rope_theta, self.rope_factor = llm.rope_theta, llm.rope_factor
        self.embed_tokens, self.norm, self.lm_head = llm.embed_tokens, llm.norm, llm.lm_head
        self.layers = nn.ModuleList(layers)
        self.tokens = tokens
        self.buffers_of: WeakKeyDictionary[KVCache, DecoderBuffers] = WeakKeyDictionary()
        self.eval()

    @property
    def dtype(self) -> torch.dtype:
        return self.norm.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.weight.device

    @property
    def vocab_size(self) -> int:
        return self.embed_tokens.num_embeddings

    def cache(self, batch: int, length: int) -> Cache:
        """A key-value cache of float32 for ``batch`` rows of at most ``length`` positions."""
        return KVCache(
            layers=len(self.layers), batch=batch, heads=self.kv_heads, length=length, head_dim=self.head_dim,
            dtype=torch.float32, device=torch.device("cpu"),
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
        """As ``Qwen2.forward``.

        Raises: ValueError for embeddings of another width, and for a cache that is full, has other rows, or is that of
            another model.
        """
        batch, length, width = embeds.shape
        if width != len(self.norm.weight):
            raise ValueError(f"embeddings have {width} channels, the model {len(self.norm.weight)}: embed with its own")
        stored = None if cache is None else self.own(cache, batch)
        if stored is not None and length == 1 and batch <= ROWS and wanted is None and not compiling(embeds):
            stored.end(1)
            states = self.buffers_for(stored).step(embeds, positions, mask, stored.length)
        else:
            states = self.read(embeds, positions, mask, stored, wanted)
        if stored is not None:
            stored.advance(length)
        return states

    def own(self, cache: Cache, batch: int) -> KVCache:
        """A cache, if it is one of this model's. Raises: ValueError if it is not, or has another number of rows."""
        cache.take(batch)
        shape = (len(self.layers), batch, self.kv_heads, cache.capacity, self.head_dim)
        if not isinstance(cache, KVCache) or cache.keys.shape != shape or cache.keys.dtype != torch.float32:
            raise ValueError(f"the cache is not one of float32 {list(shape)}: make it by this model's cache(...)")
        return cache

    def buffers_for(self, cache: KVCache) -> DecoderBuffers:
        """What tokens of a cache are written into, for as many threads as torch has now."""
        from nvila_kernels.cpu import DecoderBuffers, thread_team  # and with them a compiler

        team = thread_team()
        found = self.buffers_of.get(cache)
        if found is None or found.team is not team:
            found = self.buffers_of[cache] = DecoderBuffers(self.tokens, cache.keys, cache.values, team)
        return found

    def read(
        self,
        embeds: Tensor,
        positions: Tensor | None,
        mask: Tensor | None,
        cache: KVCache | None,
        wanted: Tensor | None,
    ) -> Tensor:
        """Any number of positions through the blocks in torch."""
        start, length = 0 if cache is None else cache.length, embeds.shape[1]
        if mask is None and start and length > 1:
            mask = causal_mask(length, start, device=embeds.device)
        if positions is None:
            positions = torch.arange(start, start + length)[None]
        angles = rotary_angles(
            positions, head_dim=self.head_dim, theta=self.rope_theta, factor=self.rope_factor, dtype=torch.float32
        )
        states, last = embeds.float(), len(self.layers) - 1
        for index, block in enumerate(self.layers):
            states = block(states, angles, mask, cache, index, wanted if index == last else None)
        return self.norm(states).to(embeds.dtype)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next token. Shapes: ``[..., width]`` -> ``[..., vocab_size]``."""
        if self.lm_head is None:
            return F.linear(hidden, self.embed_tokens.weight)
        return self.lm_head(hidden)

    def train(self, mode: bool = True) -> Self:
        refuse_training(mode)
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        refuse_devices(fn)
        found = fn(torch.empty(0, dtype=self.dtype)).dtype
        if found != self.dtype:
            raise ValueError(
                f"an optimized model computes in float32 and cannot be cast to {found}: load the model again, with "
                "optimize=False"
            )
        return super()._apply(fn, recurse)


def compiling(tensor: Tensor) -> bool:
    """Whether a tensor has no memory that a compiled token could read: it is fake, or something is being traced."""
    return torch.compiler.is_compiling() or type(tensor) is not Tensor
