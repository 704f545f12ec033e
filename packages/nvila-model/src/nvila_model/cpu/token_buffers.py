"""What a compiled token reads and writes for one cache: tensors that stay where they are from token to token."""

# pyright: basic
from __future__ import annotations

from typing import Self

import numpy as np
import torch
from nvila_kernels.cpu.compiled.product import told
from nvila_kernels.cpu.compiled.threads import Program, Team
from torch import Tensor

from nvila_model.cpu.token_blocks import TokenBlocks
from nvila_model.network.cache import KVCache


class TokenBuffers:
    """Buffers of one cache.

    Args:
        blocks: what stands in them.
        cache: of float32.
        threads: that run a token.
    """

    def __init__(self, blocks: TokenBlocks, cache: KVCache, threads: int) -> None:
        self.blocks, self.threads = blocks, threads
        rows = cache.batch
        qkv, o, gate_up, down = blocks.weights[0]
        everything = [each for block in blocks.weights for each in block]
        heads, head_dim = blocks.heads, 2 * len(blocks.frequencies)
        with torch.inference_mode(False):  # they are written to in either mode
            self.x = torch.empty(rows, qkv.inputs)
            self.places = torch.empty(rows, dtype=torch.int64)
            space = (
                torch.empty(rows, qkv.outputs),
                torch.empty(rows, o.inputs),
                torch.empty(rows, gate_up.outputs),
                torch.empty(threads, rows, qkv.inputs),
                torch.empty(threads, rows, down.inputs),
                torch.empty(threads, heads, head_dim),
                torch.empty(threads, heads, cache.capacity),
                torch.empty(threads, rows, max(each.groups * each.group for each in everything), dtype=torch.int8),
                torch.empty(threads, rows, max(each.groups for each in everything), 2),
            )
        self.weights = np.stack([told(block) for block in blocks.weights])
        # arrays are made once: between tokens the weights push out of the processor's cache what would make them
        self.states, self.turns = self.x.numpy(), self.places.numpy()
        self.norms, self.biases = blocks.norms.numpy(), blocks.biases.numpy()
        self.frequencies = blocks.frequencies.numpy()
        self.space = [each.numpy() for each in space]
        self.nothing = np.zeros((rows, 0), np.uint8)

    def step(
        self,
        program: Program,
        embeds: Tensor,
        positions: Tensor | None,
        mask: Tensor | None,
        cache: KVCache,
        team: Team,
    ) -> Tensor:
        """Normed states of one new position a row, ``[b, 1, width]`` -> the same.

        Args:
            program: that makes them.
            cache: the one that these buffers are for.
            team: with as many threads as they are for.
            positions: int64 ``[b or 1, 1]``; by default the place in the cache.
            mask: bool ``[b or 1, 1, 1, filled + 1]``, True where a row may look; by default everywhere.
        """
        start = cache.length
        self.x.copy_(embeds.detach()[:, 0])
        if positions is None:
            self.places.fill_(start)
        else:
            self.places.copy_(positions.expand(len(self.x), 1)[:, 0])
        hidden = self.nothing if mask is None else hidden_places(mask, len(self.x))
        blocks = self.blocks
        team.run(
            program, self.states, self.turns, hidden, cache.keys.numpy(), cache.values.numpy(), start, blocks.heads,
            self.weights, self.norms, self.biases, blocks.eps, self.frequencies, *self.space,
        )  # fmt: skip
        return self.x[:, None].to(embeds.dtype, copy=True)

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        return self  # the cache that it belongs to is not copied either


def hidden_places(mask: Tensor, rows: int) -> np.ndarray:
    """bool ``[b or 1, 1, 1, places]``, True where a row may look -> uint8 ``[rows, places]``, 1 where it may not."""
    return (~mask[:, 0, 0]).expand(rows, -1).contiguous().view(torch.uint8).numpy()
