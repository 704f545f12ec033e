"""What compiled programs read: the places of sizes and addresses among their arguments, and records of weights."""

# pyright: basic
from collections.abc import Sequence

import numpy as np

from nvila_kernels.cpu.compiled.layout import Weight

RECORD = np.dtype([("stream", np.int64), ("groups", np.int64), ("group", np.int64), ("factor", np.float32)], align=True)
"""What a program reads of a weight: address, groups of inputs, inputs in a group, factor of the scales."""
ARGUMENTS = 9
"""Numbers that the program of one product reads."""
MANY = 512
"""Rows whose activations stay in the processor's cache while the weight passes."""

(
    ROWS, WIDTH, MLP_WIDTH, DEPTH, HEADS, KV_HEADS, HEAD_DIM, CAPACITY, PADDED, GROUPS, BIAS_WIDTH,
    START, MASKED, MASKED_COLUMNS, X, POSITIONS, KEYS, VALUES, WEIGHTS, NORMS, BIASES, FREQUENCIES, EPS,
    JOINED, ATTENDED, GATE_AND_UP, NORMED, GATED, QUERIES, SCORES, ANGLES, CODES, SCALES, SPARE,
) = range(34)  # fmt: skip
"""Places of what a token reads, sizes and addresses. Those from ``START`` to ``MASKED_COLUMNS`` change from one token
to the next; those from ``NORMED`` on have a part for each thread.
"""
FIELDS = 34


def weight_records(weights: Sequence[Weight]) -> np.ndarray:
    """One record a weight; they are right only as long as somebody holds the weights themselves."""
    records = [(each.stream.data_ptr(), each.groups, each.group, each.factor) for each in weights]
    return np.array(records, dtype=RECORD)
