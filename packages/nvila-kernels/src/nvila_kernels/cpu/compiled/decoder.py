"""The blocks of a decoder as a compiled token reads them, and what it reads and writes for one cache.

The blocks are those of Llama and Qwen2: RMS norms before attention with rotary positions and shared keys, and before a
gated MLP.
"""

# pyright: basic
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor

from nvila_kernels.cpu.compiled import fields as at
from nvila_kernels.cpu.compiled.fields import weight_records
from nvila_kernels.cpu.compiled.instructions import here
from nvila_kernels.cpu.compiled.layout import OUTPUTS, Weight
from nvila_kernels.cpu.compiled.product import Product
from nvila_kernels.cpu.compiled.program import Program, load_program
from nvila_kernels.cpu.compiled.threads import ThreadTeam
from nvila_kernels.cpu.packed_linear import PackedWeight


@cache
def token_program() -> Program:
    """The program of this processor. Raises: RuntimeError where there can be none."""
    instructions = here()
    if instructions is None:
        raise RuntimeError("the processor has not AVX2, which a compiled token needs")

    def compiled():
        from nvila_kernels.cpu.compiled.token import token_function  # and with it numba

        return token_function(instructions)

    return load_program("token", compiled, instructions=instructions.name)


@dataclass(frozen=True, kw_only=True)
class DecoderBlocks:
    """Packed weights, norms and biases, and what all blocks have in common.

    Attributes:
        weights: of each block, packed for ``"numba int8"``: queries, keys and values as one, output, gate and up as
            one, down.
        norms: float32 ``[2 * blocks + 1, width]``, before attention and MLP of each block, and after the last one.
        biases: float32 ``[blocks, outputs]`` of the queries, keys and values, filled up to whole 64 outputs.
        frequencies: float32 ``[head_dim / 2]``, the angle of one position.
        heads, kv_heads: of attention.
        eps: of the norms.
    """

    weights: Sequence[Sequence[PackedWeight]]
    norms: Tensor
    biases: Tensor
    frequencies: Tensor
    heads: int
    kv_heads: int
    eps: float

    @staticmethod
    def filled(biases: Sequence[Tensor | None], outputs: int) -> Tensor:
        """The biases of all blocks as they are read; zeros where there is none."""
        made = torch.zeros(len(biases), -(-outputs // OUTPUTS) * OUTPUTS)
        for row, bias in zip(made, biases, strict=True):
            if bias is not None:
                row[:outputs] = bias
        return made

    def packed(self) -> list[list[Weight]]:
        """The weights as they lie in memory."""
        return [[cast(Product, weight.run).weight for weight in block] for block in self.weights]

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # as for ``PackedWeight``: it never changes


class DecoderBuffers:
    """What a token reads and writes for one cache: arrays that stay where they are from token to token.

    Args:
        blocks: what stands in them.
        keys, values: float32 ``[blocks, rows, kv_heads, capacity, head_dim]``.
        team: the threads that run a token.
    """

    def __init__(self, blocks: DecoderBlocks, keys: Tensor, values: Tensor, team: ThreadTeam) -> None:
        self.team = team
        self.program = token_program()
        packed = blocks.packed()
        qkv, _, gate_up, down = packed[0]
        everything = [weight for block in packed for weight in block]
        depth, rows, kv_heads, capacity, head_dim = keys.shape
        heads, threads, width = blocks.heads, team.threads, qkv.inputs
        padded, groups = (max(size) for size in zip(*((w.groups * w.group, w.groups) for w in everything), strict=True))
        with torch.inference_mode(False):  # it is written in either mode
            self.x = torch.empty(rows, width)
        # arrays are made once: between tokens the weights push out of the processor's cache what would make them
        self.positions = np.empty(rows, np.int64)
        space = {
            at.JOINED: np.empty((rows, qkv.outputs), np.float32),
            at.ATTENDED: np.empty((rows, heads * head_dim), np.float32),
            at.GATE_AND_UP: np.empty((rows, gate_up.outputs), np.float32),
            at.NORMED: np.empty((threads, rows, width), np.float32),
            at.GATED: np.empty((threads, rows, down.inputs), np.float32),
            at.QUERIES: np.empty((threads, heads, head_dim), np.float32),
            at.SCORES: np.empty((threads, heads, capacity), np.float32),
            at.ANGLES: np.empty((threads, head_dim), np.float32),
            at.CODES: np.empty((threads, rows, padded), np.int8),
            at.SCALES: np.empty((threads, rows, groups, 2), np.float32),
            at.SPARE: np.empty((threads, rows, OUTPUTS), np.float32),
        }
        self.arrays = {
            at.X: self.x.numpy(), at.POSITIONS: self.positions, at.KEYS: keys.numpy(), at.VALUES: values.numpy(),
            at.WEIGHTS: np.stack([weight_records(block) for block in packed]), at.NORMS: blocks.norms.numpy(),
            at.BIASES: blocks.biases.numpy(), at.FREQUENCIES: blocks.frequencies.numpy(),
            at.EPS: np.array([blocks.eps], np.float32), **space,
        }  # fmt: skip
        sizes = {
            at.ROWS: rows, at.WIDTH: width, at.MLP_WIDTH: down.inputs, at.DEPTH: depth, at.HEADS: heads,
            at.KV_HEADS: kv_heads, at.HEAD_DIM: head_dim, at.CAPACITY: capacity, at.PADDED: padded, at.GROUPS: groups,
            at.BIAS_WIDTH: blocks.biases.shape[1],
        }  # fmt: skip
        self.blocks = blocks  # records hold addresses alone
        self.arguments = np.zeros(at.FIELDS, np.int64)
        for place, value in sizes.items():
            self.arguments[place] = value
        for place, array in self.arrays.items():
            self.arguments[place] = array.ctypes.data

    def step(self, embeds: Tensor, positions: Tensor | None, mask: Tensor | None, start: int) -> Tensor:
        """Normed states of one new position a row, ``[b, 1, width]`` -> the same. Keys and values are written.

        Args:
            positions: int64 ``[b or 1, 1]``; by default the place in the cache.
            mask: bool ``[b or 1, 1, 1, start + 1]``, True where a row may look; by default everywhere.
            start: positions of the cache that are filled, fewer than it has.

        Raises: ValueError for tensors of other shapes.
        """
        rows, width = self.x.shape
        self.check(embeds, (rows, 1, width), "embeddings")
        self.x.copy_(embeds.detach()[:, 0])
        if positions is None:
            self.positions[:] = start
        else:
            self.check(positions, (len(positions) if len(positions) == 1 else rows, 1), "positions")
            self.positions[:] = positions[:, 0].numpy()
        masked = None
        if mask is not None:
            self.check(mask, (len(mask) if len(mask) == 1 else rows, 1, 1, start + 1), "mask")
            masked = (~mask[:, 0, 0]).expand(rows, -1).contiguous().view(torch.uint8).numpy()
        arguments = self.arguments
        arguments[at.START] = start
        arguments[at.MASKED] = 0 if masked is None else masked.ctypes.data
        arguments[at.MASKED_COLUMNS] = 0 if masked is None else masked.shape[1]
        self.team.run(self.program, arguments)
        return self.x[:, None].to(embeds.dtype, copy=True)

    @staticmethod
    def check(tensor: Tensor, shape: tuple[int, ...], name: str) -> None:
        if tensor.shape != shape:
            raise ValueError(f"{name} are {list(tensor.shape)}, a token of this cache needs {list(shape)}: pass those")

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self  # the cache that it belongs to is not copied either
