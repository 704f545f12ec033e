"""What stands between the products of a transformer's block, for numba: loops that the compiler makes vectors of."""

# pyright: basic, reportCallIssue=false
import numpy as np
from numba import njit

from nvila_kernels.cpu.compiled.addresses import as_float

ONE, HALF = np.float32(1), np.float32(0.5)
LEAST, MOST = np.float32(-87), np.float32(88)
"""Between these the exponential is a float32 that has all its bits."""
LOG2E = np.float32(1.4426950408889634)
LN2_HIGH, LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
"""The logarithm of 2 in two parts, the first with few bits: a whole number times it is exact."""
C2, C3, C4, C5, C6 = (np.float32(1 / value) for value in (2, 6, 24, 120, 720))


@njit(nogil=True, error_model="numpy")
def exponential(x):
    """Within 3e-7 of ``e^x`` for ``x`` between -87 and 88, beyond which it stays as it is there.

    ``e^x = 2^n e^r``, the exponent ``n`` written into the bits of the float, and Taylor's polynomial of ``e^r`` for
    ``|r| <= ln(2) / 2``. The C library's function takes one number at a time.
    """
    x = min(max(x, LEAST), MOST)
    n = np.floor(x * LOG2E + HALF)
    r = x - n * LN2_HIGH - n * LN2_LOW
    series = ONE + r * (ONE + r * (C2 + r * (C3 + r * (C4 + r * (C5 + r * C6)))))
    return series * as_float((np.int32(n) + np.int32(127)) << np.int32(23))


@njit(nogil=True, error_model="numpy", fastmath={"reassoc", "contract"})
def normalize(x, weight, eps, out):
    """RMS norm of rows: ``x / sqrt(mean(x^2) + eps) * weight``, float32 ``[rows, width]``."""
    for row in range(len(x)):
        squares = np.float32(0)
        for i in range(x.shape[1]):
            squares += x[row, i] * x[row, i]
        scale = ONE / np.sqrt(squares / np.float32(x.shape[1]) + eps)
        for i in range(x.shape[1]):
            out[row, i] = weight[i] * (x[row, i] * scale)


@njit(nogil=True, error_model="numpy")
def gate(joined, out):
    """``silu(gate) * up`` of both side by side: float32 ``[rows, 2 * width]`` -> ``[rows, width]``."""
    width = out.shape[1]
    for row in range(len(joined)):
        for i in range(width):
            value = joined[row, i]
            out[row, i] = value / (ONE + exponential(-value)) * joined[row, width + i]


@njit(nogil=True, error_model="numpy")
def rotate(x, first, cos, sin, factor, out):
    """Turn each pair ``(x[i], x[i + d/2])`` from ``first`` on by its angle, and stretch it: float32 ``[d]``."""
    half = len(cos)
    for i in range(half):
        one, other = x[first + i], x[first + half + i]
        out[i] = factor * (one * cos[i] - other * sin[i])
        out[half + i] = factor * (other * cos[i] + one * sin[i])


@njit(nogil=True, error_model="numpy", fastmath={"reassoc", "contract"})
def attend(heads, queries, keys, values, positions, masked, scores):
    """Attention of some heads of one position, which share keys and values.

    Args:
        heads: how many.
        queries: float32 ``[heads or more, d]``, stretched already; the result is written over them.
        keys, values: float32 ``[positions or more, d]``.
        masked: uint8 ``[positions]``, 1 for those that may not be looked at; empty if all may.
        scores: float32 ``[heads, positions or more]``, to work with.
    """
    d = queries.shape[1]
    for p in range(positions):
        for h in range(heads):
            score = np.float32(0)
            for i in range(d):
                score += queries[h, i] * keys[p, i]
            scores[h, p] = score
    for h in range(heads):
        row = scores[h]
        for p in range(len(masked)):
            if masked[p]:
                row[p] = -np.inf
        top = row[0]
        for p in range(1, positions):
            top = max(top, row[p])
        total = np.float32(0)
        for p in range(positions):
            row[p] = exponential(row[p] - top)
            total += row[p]
        for p in range(positions):
            row[p] /= total
        for i in range(d):
            queries[h, i] = 0
    for p in range(positions):
        for h in range(heads):
            weight = scores[h, p]
            for i in range(d):
                queries[h, i] += weight * values[p, i]
