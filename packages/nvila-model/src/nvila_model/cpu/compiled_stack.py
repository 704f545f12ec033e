"""The blocks of a language model and the norm behind them, tokens as one compiled function.

Prompts go through the same blocks in torch, whose products are compiled too and read the same packed weights: there
what lies between products is large, and torch is good at it.
"""

from __future__ import annotations

from typing import cast
from weakref import WeakKeyDictionary

import torch
from nvila_kernels.cpu.compiled.instructions import Instructions, here
from nvila_kernels.cpu.compiled.threads import team
from nvila_kernels.cpu.shape import DECODE_ROWS
from torch import Tensor

from nvila_model.cpu.prompt_blocks import PromptBlocks
from nvila_model.cpu.stack import Stack, plain
from nvila_model.cpu.token_blocks import TokenBlocks
from nvila_model.cpu.token_buffers import TokenBuffers
from nvila_model.cpu.token_program import token_program
from nvila_model.network.cache import Cache, KVCache


class CompiledStack(Stack):
    """Blocks that write into a cache of float32.

    Args:
        tokens: the blocks, for one position a row.
        prompts: the same blocks, for many.
        kv_heads, head_dim: of keys and values.

    Shapes: those of ``Qwen2``.
    """

    def __init__(self, tokens: TokenBlocks, prompts: PromptBlocks, *, kv_heads: int, head_dim: int) -> None:
        super().__init__()
        self.tokens, self.prompts = tokens, prompts
        self.kv_heads, self.head_dim = kv_heads, head_dim
        self.buffers_of: WeakKeyDictionary[KVCache, TokenBuffers] = WeakKeyDictionary()
        self.program = token_program(cast(Instructions, here()))

    def cache(self, batch: int, length: int) -> KVCache:
        return KVCache(
            layers=len(self.tokens.weights), batch=batch, heads=self.kv_heads, length=length, head_dim=self.head_dim,
            dtype=torch.float32, device=torch.device("cpu"),
        )  # fmt: skip

    def forward(
        self,
        embeds: Tensor,
        *,
        positions: Tensor | None,
        mask: Tensor | None,
        cache: Cache | None,
        wanted: Tensor | None,
    ) -> Tensor:
        """Raises: ValueError for a cache that is full or has other rows."""
        batch, length, _ = embeds.shape
        stored = cast(KVCache | None, cache)
        if stored is not None:
            stored.take(batch)
        decoding = length == 1 and batch <= DECODE_ROWS and wanted is None and plain(embeds)
        if stored is None or not decoding:
            return self.prompts(embeds, positions, mask, stored, wanted)
        stored.end(1)
        together = team()
        buffers = self.buffers_of.get(stored)
        if buffers is None or buffers.threads != together.threads:
            buffers = self.buffers_of[stored] = TokenBuffers(self.tokens, stored, together.threads)
        return buffers.step(self.program, embeds, positions, mask, stored, together)
