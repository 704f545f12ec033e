"""One token through all blocks of a decoder, for numba.

Between two products of a token stand some dozen small operations. Called one by one, each costs more than it computes:
the weights have just pushed everything else out of the processor's cache. Here all threads run all of it, what is small
twice rather than waiting for each other, and wait at five barriers a block.
"""

# pyright: basic, reportCallIssue=false, reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportArgumentType=false
import numpy as np
from numba import carray, njit

from nvila_kernels.cpu.compiled import fields as at
from nvila_kernels.cpu.compiled.addresses import integers, matrix, pointer, vector
from nvila_kernels.cpu.compiled.barrier import barrier, split_work, started
from nvila_kernels.cpu.compiled.fields import RECORD
from nvila_kernels.cpu.compiled.functions import attend, gate, normalize, rotate
from nvila_kernels.cpu.compiled.instructions import Instructions
from nvila_kernels.cpu.compiled.layout import OUTPUTS
from nvila_kernels.cpu.compiled.multiply import multiplier, quantize
from nvila_kernels.cpu.compiled.program import OPTIONS

QKV, OUT, GATE_UP, DOWN = range(4)
"""Columns of the records of each block's weights."""


@njit(nogil=True, error_model="numpy")
def attend_all(
    first, last, heads, joined, positions, frequencies, keys, values, start, masked, queries, scores, angles, attended
):
    """Attention of some pairs of a row and a head; keys and values of the new positions are written.

    Args:
        first, last: of the pairs.
        heads: of queries in a row.
        joined: float32 ``[b, (heads + 2 kv_heads) d]``, not yet rotated.
        positions: int64 ``[b]``, for rotation.
        frequencies: float32 ``[d / 2]``.
        keys, values: float32 ``[b, kv_heads, capacity, d]``.
        start: positions that are filled.
        masked: uint8 ``[b, start + 1 or 0]``.
        queries, scores, angles: to work with, float32 ``[heads, d]``, ``[heads, capacity]`` and ``[2, d / 2]``.
        attended: float32 ``[b, heads d]``, written.
    """
    kv_heads, d = keys.shape[1], keys.shape[3]
    shared = heads // kv_heads
    cos, sin = angles[0], angles[1]
    pair = first
    while pair < last:
        row, head = pair // heads, pair % heads
        kv = head // shared
        count = min(last, row * heads + (kv + 1) * shared) - pair
        for i in range(len(frequencies)):
            angle = np.float32(positions[row]) * frequencies[i]
            cos[i], sin[i] = np.cos(angle), np.sin(angle)
        key, value = (heads + kv) * d, (heads + kv_heads + kv) * d
        rotate(joined[row], key, cos, sin, np.float32(1), keys[row, kv, start])
        for i in range(d):
            values[row, kv, start, i] = joined[row, value + i]
        for each in range(count):
            rotate(joined[row], (head + each) * d, cos, sin, np.float32(1 / np.sqrt(d)), queries[each])
        attend(count, queries, keys[row, kv], values[row, kv], start + 1, masked[row], scores)
        for each in range(count):
            for i in range(d):
                attended[row, (head + each) * d + i] = queries[each, i]
        pair += count


def token_function(instructions: Instructions):
    """The function, for all threads of a team: ``fields`` says what it reads."""
    multiply = multiplier(instructions)

    @njit(nogil=True, error_model="numpy")
    def product(thread, threads, x, weight, start, start_step, out, codes, scales, spare):
        """A thread's part of ``out = start + x @ weight.T``; activations are rounded by each thread for itself."""
        quantize(x, 0, len(x), weight.group, weight.factor, codes, scales)
        first, last = split_work(-(-out.shape[1] // OUTPUTS), thread, threads)
        multiply(weight, first, last, codes, scales, start, start_step, out, spare)

    @njit(**OPTIONS)
    def run(thread, threads, state, arguments):
        if not started(thread, state):
            return
        a = integers(arguments, at.FIELDS)
        rows, width, mlp_width, depth = a[at.ROWS], a[at.WIDTH], a[at.MLP_WIDTH], a[at.DEPTH]
        heads, kv_heads, d, capacity, start = a[at.HEADS], a[at.KV_HEADS], a[at.HEAD_DIM], a[at.CAPACITY], a[at.START]
        padded, groups, outputs = a[at.PADDED], a[at.GROUPS], (heads + 2 * kv_heads) * d
        x, joined = matrix(a[at.X], rows, width), matrix(a[at.JOINED], rows, outputs)
        attended, both = matrix(a[at.ATTENDED], rows, heads * d), matrix(a[at.GATE_AND_UP], rows, 2 * mlp_width)
        positions = integers(a[at.POSITIONS], rows)
        masked = carray(pointer(a[at.MASKED]), (rows, a[at.MASKED_COLUMNS]), np.uint8)
        shape = (depth, rows, kv_heads, capacity, d)
        keys, values = (
            carray(pointer(a[at.KEYS]), shape, np.float32),
            carray(pointer(a[at.VALUES]), shape, np.float32),
        )
        weights = carray(pointer(a[at.WEIGHTS]), (depth, 4), RECORD)
        norms, frequencies = matrix(a[at.NORMS], 2 * depth + 1, width), vector(a[at.FREQUENCIES], d // 2)
        eps = vector(a[at.EPS], 1)[0]
        # of this thread alone
        mine = matrix(a[at.NORMED] + 4 * thread * rows * width, rows, width)
        gated = matrix(a[at.GATED] + 4 * thread * rows * mlp_width, rows, mlp_width)
        queries = matrix(a[at.QUERIES] + 4 * thread * heads * d, heads, d)
        scores = matrix(a[at.SCORES] + 4 * thread * heads * capacity, heads, capacity)
        angles = matrix(a[at.ANGLES] + 4 * thread * d, 2, d // 2)
        codes = carray(pointer(a[at.CODES] + thread * rows * padded), (rows, padded), np.int8)
        scales = carray(pointer(a[at.SCALES] + 8 * thread * rows * groups), (rows, groups, 2), np.float32)
        spare = matrix(a[at.SPARE] + 4 * thread * rows * OUTPUTS, rows, OUTPUTS)
        nothing, states, step = np.int64(0), a[at.X], 4 * width
        for layer in range(depth):
            normalize(x, norms[2 * layer], eps, mine)
            bias = a[at.BIASES] + 4 * layer * a[at.BIAS_WIDTH]
            product(thread, threads, mine, weights[layer, QKV], bias, nothing, joined, codes, scales, spare)
            barrier(threads, state)
            first, last = split_work(rows * heads, thread, threads)
            attend_all(
                first, last, heads, joined, positions, frequencies, keys[layer], values[layer], start, masked,
                queries, scores, angles, attended,
            )  # fmt: skip
            barrier(threads, state)
            product(thread, threads, attended, weights[layer, OUT], states, step, x, codes, scales, spare)
            barrier(threads, state)
            normalize(x, norms[2 * layer + 1], eps, mine)
            product(thread, threads, mine, weights[layer, GATE_UP], nothing, nothing, both, codes, scales, spare)
            barrier(threads, state)
            gate(both, gated)
            product(thread, threads, gated, weights[layer, DOWN], states, step, x, codes, scales, spare)
            barrier(threads, state)
        if thread == 0:
            normalize(x, norms[2 * depth], eps, x)

    return run
