"""One token through all blocks of a language model, as one compiled function.

Between two products of a token stand some dozen small operations. Called one by one, each costs more than it computes:
the weights have just pushed everything else out of the processor's cache. Here all threads run all of it, what is small
twice rather than waiting for each other, and meet five times a block.
"""

# pyright: basic
from __future__ import annotations

from functools import cache

import numpy as np
from numba import from_dtype, njit, types
from nvila_kernels.cpu.compiled.functions import attend, gate, normalize, rotate
from nvila_kernels.cpu.compiled.instructions import Instructions
from nvila_kernels.cpu.compiled.layout import OUTPUTS
from nvila_kernels.cpu.compiled.product import MATRIX, RECORD, TEAM, multiplier, quantize
from nvila_kernels.cpu.compiled.threads import meet, share

CACHE = types.float32[:, :, :, :, ::1]
EACH = types.float32[:, :, ::1]
"""Of each thread."""
SIGNATURE = types.void(
    *TEAM, MATRIX, types.int64[::1], types.uint8[:, ::1], CACHE, CACHE, types.int64, types.int64,
    from_dtype(RECORD)[:, ::1], MATRIX, MATRIX, types.float32, types.float32[::1], MATRIX, MATRIX, MATRIX,
    EACH, EACH, EACH, EACH, types.int8[:, :, ::1], types.float32[:, :, :, ::1],
)  # fmt: skip
QKV, OUT, GATE_UP, DOWN = range(4)
"""Columns of what is told of each block's weights."""


@njit(nogil=True)
def attend_all(first, last, heads, joined, places, frequencies, keys, values, start, hidden, queries, scores, attended):
    """Attention of some pairs of a row and a head; keys and values of the new positions are written.

    Args:
        first, last: of the pairs.
        heads: of queries in a row.
        joined: float32 ``[b, (heads + 2 kv_heads) d]``, not yet rotated.
        places: int64 ``[b]``, for rotation.
        frequencies: float32 ``[d / 2]``.
        keys, values: float32 ``[b, kv_heads, capacity, d]``.
        start: positions that are filled.
        hidden: uint8 ``[b or 1, start + 1 or 0]``.
        queries, scores: to work with, float32 ``[heads, d]`` and ``[heads, capacity]``.
        attended: float32 ``[b, heads d]``, written.
    """
    kv_heads, d = keys.shape[1], keys.shape[3]
    shared = heads // kv_heads
    half = len(frequencies)
    cos, sin = np.empty(half, np.float32), np.empty(half, np.float32)
    pair = first
    while pair < last:
        row, head = pair // heads, pair % heads
        kv = head // shared
        count = min(last, row * heads + (kv + 1) * shared) - pair
        for i in range(half):
            angle = np.float32(places[row]) * frequencies[i]
            cos[i], sin[i] = np.cos(angle), np.sin(angle)
        key, value = (heads + kv) * d, (heads + kv_heads + kv) * d
        rotate(joined[row], key, cos, sin, np.float32(1), keys[row, kv, start])
        for i in range(d):
            values[row, kv, start, i] = joined[row, value + i]
        for each in range(count):
            rotate(joined[row], (head + each) * d, cos, sin, np.float32(1 / np.sqrt(d)), queries[each])
        attend(count, queries, keys[row, kv], values[row, kv], start + 1, hidden[row], scores)
        for each in range(count):
            for i in range(d):
                attended[row, (head + each) * d + i] = queries[each, i]
        pair += count


@cache
def token_program(instructions: Instructions):
    """The function, for a team: see ``TokenBuffers`` for what it takes."""
    multiply = multiplier(instructions)

    @njit(nogil=True)
    def product(thread, threads, x, weight, start, start_step, out, codes, scales):
        """A thread's share of ``out = start + x @ weight.T``; activations are rounded by each thread for itself."""
        quantize(x, 0, len(x), weight.group, weight.factor, codes, scales)
        first, last = share(-(-out.shape[1] // OUTPUTS), thread, threads)
        multiply(weight, first, last, codes, scales, start, start_step, out)

    @njit(SIGNATURE, nogil=True)
    def run(
        thread, threads, meeting, x, places, hidden, keys, values, start, heads, weights, norms, biases, eps,
        frequencies, joined, attended, both, normed, gated, queries, scores, all_codes, all_scales,
    ):  # fmt: skip
        mine, gates, codes, scales = normed[thread], gated[thread], all_codes[thread], all_scales[thread]
        nothing, states, step = np.int64(0), np.int64(x.ctypes.data), x.shape[1] * x.itemsize
        for layer in range(len(weights)):
            normalize(x, norms[2 * layer], eps, mine)
            bias = np.int64(biases[layer].ctypes.data)
            product(thread, threads, mine, weights[layer, QKV], bias, nothing, joined, codes, scales)
            meet(threads, meeting)
            first, last = share(len(x) * heads, thread, threads)
            attend_all(
                first, last, heads, joined, places, frequencies, keys[layer], values[layer], start, hidden,
                queries[thread], scores[thread], attended,
            )  # fmt: skip
            meet(threads, meeting)
            product(thread, threads, attended, weights[layer, OUT], states, step, x, codes, scales)
            meet(threads, meeting)
            normalize(x, norms[2 * layer + 1], eps, mine)
            product(thread, threads, mine, weights[layer, GATE_UP], nothing, nothing, both, codes, scales)
            meet(threads, meeting)
            gate(both, gates)
            product(thread, threads, gates, weights[layer, DOWN], states, step, x, codes, scales)
            meet(threads, meeting)
        if thread == 0:
            normalize(x, norms[2 * len(weights)], eps, x)

    return run
