"""Rows of floats times a packed weight."""

# pyright: basic, reportCallIssue=false, reportAttributeAccessIssue=false
from collections.abc import Sequence
from functools import cache

import numba
import numpy as np
import torch
from numba import from_dtype, njit, types
from numba.core.errors import NumbaError
from torch import Tensor

from nvila_kernels.cpu.compiled.bits import as_float, float_at
from nvila_kernels.cpu.compiled.instructions import Instructions, here
from nvila_kernels.cpu.compiled.layout import OCTET, OUTPUTS, TAIL, Weight
from nvila_kernels.cpu.compiled.threads import ALONE, meet, share, team
from nvila_kernels.cpu.compiled.tile import tile

RECORD = np.dtype([("stream", np.int64), ("groups", np.int64), ("group", np.int64), ("factor", np.float32)], align=True)
"""What a program is told of a weight: address, groups of inputs, inputs in a group, factor of the scales."""
TEAM = (types.int64, types.int64, types.int64[::1])
MATRIX, WEIGHT = types.float32[:, ::1], from_dtype(RECORD)[::1]
CODES, SCALES = types.int8[:, ::1], types.float32[:, :, ::1]
"""Types of what programs take; ``TEAM`` comes first."""
LEVELS = np.float32(127)
FEW = 2**23
"""Products of numbers that one thread computes before others would have woken."""
MANY = 512
"""Rows whose activations stay in the processor's cache while the weight passes."""
NAN = np.int32(0x7FFFFFFF)
"""All bits of a float but its sign."""


@njit(nogil=True, error_model="numpy", fastmath={"reassoc"})
def quantize(x, first, last, group, factor, codes, scales):
    """Rows as int8 with a scale a group: ``x ~ codes * scale``, the largest of a group being 127.

    Args:
        x: float32 ``[rows, inputs]``.
        first, last: of the rows.
        factor: by which scales are multiplied.
        codes: int8 ``[rows, groups * group or more]``, written; zeros behind the inputs.
        scales: float32 ``[rows, groups or more, 2]``, written: scale times factor, and the sum of the codes.
    """
    inputs = x.shape[1]
    for row in range(first, last):
        bits = x[row].view(np.int32)
        for g in range(-(-inputs // group)):
            start, end = g * group, min((g + 1) * group, inputs)
            top = np.int32(0)
            for i in range(start, end):
                top = max(top, bits[i] & NAN)  # bits of positive floats are in the order of the floats
            scale = as_float(top) / LEVELS
            inverse = np.float32(1) / scale if scale > np.float32(0) else np.float32(0)
            total = np.int32(0)
            for i in range(start, end):
                code = np.int32(np.rint(x[row, i] * inverse))
                codes[row, i] = code
                total += code
            for i in range(end, (g + 1) * group):
                codes[row, i] = 0
            scales[row, g, 0] = scale * factor
            scales[row, g, 1] = total


def told(weights: Sequence[Weight]) -> np.ndarray:
    """One record a weight; they stay where they are only as long as somebody holds the weights themselves."""
    records = [(each.stream.data_ptr(), each.groups, each.group, each.factor) for each in weights]
    return np.array(records, dtype=RECORD)


@cache
def multiplier(instructions: Instructions):
    """Quantized rows times some blocks of a weight, for numba."""
    narrow = tile(instructions, rows=1, vectors=instructions.alone)
    wide = tile(instructions, rows=instructions.rows, vectors=instructions.vectors)
    few, some = instructions.alone * instructions.lanes, instructions.vectors * instructions.lanes
    most = instructions.rows

    @njit(nogil=True)
    def block(weight, groups, group, codes, inputs, scales, scale_step, start, start_step, out, out_step, rows):
        """One block of outputs; addresses and bytes, as for ``tile``."""
        octets, stride = group // OCTET, group * OUTPUTS // 2 + TAIL
        row = 0
        while row < rows:
            x, a, y = codes + row * inputs, scales + row * scale_step, out + row * out_step
            begin = start + row * start_step if start else 0
            if row + most <= rows:
                for j in range(0, OUTPUTS, some):
                    wide(weight, j, groups, octets, stride, x, inputs, a, scale_step, begin, start_step, y, out_step)
                row += most
            else:
                for j in range(0, OUTPUTS, few):
                    narrow(weight, j, groups, octets, stride, x, inputs, a, scale_step, begin, start_step, y, out_step)
                row += 1

    @njit(nogil=True)
    def multiply(weight, first, last, codes, scales, start, start_step, out):
        """``out = start + x @ weight.T`` for the outputs of some blocks.

        Args:
            weight: as ``told`` has it.
            first, last: of the blocks.
            codes, scales: of the rows, as ``quantize`` writes them.
            start, start_step: address of float32 to begin with, 0 for zeros, and bytes from row to row.
            out: float32 ``[rows, outputs]``.
        """
        rows, inputs = codes.shape
        outputs, scale_step = out.shape[1], scales.shape[1] * 8
        stream, groups, group = weight.stream, weight.groups, weight.group
        stride = groups * (group * OUTPUTS // 2 + TAIL)
        spare = np.empty((min(MANY, rows), OUTPUTS), np.float32)
        for top in range(0, rows, MANY):
            count = min(MANY, rows - top)
            x, a = np.int64(codes.ctypes.data) + top * inputs, np.int64(scales.ctypes.data) + top * scale_step
            for j in range(first, last):
                left = outputs - j * OUTPUTS
                begin = start + top * start_step + j * OUTPUTS * 4 if start else 0
                whole = left >= OUTPUTS
                y, step = np.int64(out.ctypes.data) + (top * outputs + j * OUTPUTS) * 4, outputs * 4
                if not whole:
                    y, step = np.int64(spare.ctypes.data), OUTPUTS * 4
                at = begin if whole else 0
                block(stream + j * stride, groups, group, x, inputs, a, scale_step, at, start_step, y, step, count)
                if not whole:
                    for row in range(count):
                        for i in range(left):
                            more = float_at(begin + row * start_step + 4 * i) if start else np.float32(0)
                            out[top + row, j * OUTPUTS + i] = spare[row, i] + more

    return multiply


@cache
def multiplier_of_rows(instructions: Instructions):
    """Rows of floats times one weight, for a team: activations are rounded together, then each takes its blocks."""
    multiply = multiplier(instructions)

    @njit(types.void(*TEAM, MATRIX, WEIGHT, CODES, SCALES, MATRIX), nogil=True)
    def run(thread, threads, meeting, x, weight, codes, scales, out):
        first, last = share(len(x), thread, threads)
        quantize(x, first, last, weight[0].group, weight[0].factor, codes, scales)
        meet(threads, meeting)
        first, last = share(-(-out.shape[1] // OUTPUTS), thread, threads)
        nothing = np.int64(0)
        multiply(weight[0], first, last, codes, scales, nothing, nothing, out)

    return run


class Product:
    """Multiplies rows by a packed weight: ``x @ weight.T``, activations rounded to int8 with a scale for each group.

    Args:
        weight: packed.
        instructions: to use; by default the best of this processor.

    Shapes: contiguous float32 ``[rows, inputs]`` -> float32 ``[rows, outputs]``.
    Raises: RuntimeError on a processor that has none of them, or where numba cannot compile it.
    """

    def __init__(self, weight: Weight, *, instructions: Instructions | None = None) -> None:
        instructions = instructions or here()
        if instructions is None:
            raise RuntimeError("the processor has not AVX2, which these products need: use another kernel")
        self.weight, self.told = weight, told([weight])
        try:
            self.run = multiplier_of_rows(instructions)
        except NumbaError as error:
            raise RuntimeError(f"numba {numba.__version__} cannot compile the product: {error.msg}") from error

    def __call__(self, x: Tensor) -> Tensor:
        # arrays of numpy: weights push torch out of the processor's cache, and then its tensors take far longer to make
        rows, weight = x.shape[0], self.weight
        out = np.empty((rows, weight.outputs), np.float32)
        codes = np.empty((rows, weight.groups * weight.group), np.int8)
        scales = np.empty((rows, weight.groups, 2), np.float32)
        many = rows * weight.outputs * weight.inputs >= FEW
        (team() if many else ALONE).run(self.run, x.detach().numpy(), self.told, codes, scales, out)
        return torch.from_numpy(out)
