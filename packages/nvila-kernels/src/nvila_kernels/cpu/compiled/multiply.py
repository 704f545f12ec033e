"""Rows of floats times packed weights, for numba."""

# pyright: basic, reportCallIssue=false, reportPrivateImportUsage=false, reportAttributeAccessIssue=false, reportArgumentType=false
from functools import cache

import numpy as np
from numba import carray, njit

from nvila_kernels.cpu.compiled.addresses import as_float, float_at, integers, matrix, pointer
from nvila_kernels.cpu.compiled.barrier import barrier, split_work, started
from nvila_kernels.cpu.compiled.fields import ARGUMENTS, MANY, RECORD
from nvila_kernels.cpu.compiled.instructions import Instructions
from nvila_kernels.cpu.compiled.layout import OCTET, OUTPUTS, TAIL
from nvila_kernels.cpu.compiled.program import OPTIONS
from nvila_kernels.cpu.compiled.tile import tile

LEVELS = np.float32(127)
ABS_MASK = np.int32(0x7FFFFFFF)
"""All bits of a float but its sign."""


@njit(nogil=True, error_model="numpy", fastmath={"reassoc"})
def quantize(x, first, last, group, factor, codes, scales):
    """Rows as int8 with a scale a group: ``x ~ codes * scale``, the largest of a group being 127.

    Args:
        x: float32 ``[rows, inputs]``.
        first, last: of the rows.
        factor: by which scales are multiplied.
        codes: int8 ``[rows, groups * group or more]``, written; zeros after the inputs.
        scales: float32 ``[rows, groups or more, 2]``, written: scale times factor, and the sum of the codes.
    """
    inputs = x.shape[1]
    for row in range(first, last):
        bits = x[row].view(np.int32)
        for g in range(-(-inputs // group)):
            start, end = g * group, min((g + 1) * group, inputs)
            top = np.int32(0)
            for i in range(start, end):
                top = max(top, bits[i] & ABS_MASK)  # bits of positive floats are in the order of the floats
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


@cache
def multiplier(instructions: Instructions):
    """Quantized rows times some blocks of a weight, for numba."""
    narrow = tile(instructions, rows=1, vectors=instructions.alone)
    wide = tile(instructions, rows=instructions.rows, vectors=instructions.vectors)
    few, some = instructions.alone * instructions.lanes, instructions.vectors * instructions.lanes
    most = instructions.rows

    @njit(nogil=True, error_model="numpy")
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

    @njit(nogil=True, error_model="numpy")
    def multiply(weight, first, last, codes, scales, start, start_step, out, spare):
        """``out = start + x @ weight.T`` for the outputs of some blocks.

        Args:
            weight: a record of ``weight_records``.
            first, last: of the blocks.
            codes, scales: of the rows, as ``quantize`` writes them.
            start, start_step: address of float32 to begin with, 0 for zeros, and bytes from row to row.
            out: float32 ``[rows, outputs]``.
            spare: float32 ``[rows or MANY, 64]``, to work with.
        """
        rows, inputs = codes.shape
        outputs, scale_step = out.shape[1], scales.shape[1] * 8
        stream, groups, group = weight.stream, weight.groups, weight.group
        stride = groups * (group * OUTPUTS // 2 + TAIL)
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


def product_function(instructions: Instructions):
    """Rows of floats times one weight, for all threads of a team: each rounds some of the activations, then takes its
    blocks. ``Product`` says what it reads.
    """
    multiply = multiplier(instructions)

    @njit(**OPTIONS)
    def run(thread, threads, state, arguments):
        if not started(thread, state):
            return
        x_at, rows, inputs, record, codes_at, scales_at, out_at, outputs, spare_at = integers(arguments, ARGUMENTS)
        weight = carray(pointer(record), (1,), RECORD)[0]
        padded = weight.groups * weight.group
        codes = carray(pointer(codes_at), (rows, padded), np.int8)
        scales = carray(pointer(scales_at), (rows, weight.groups, 2), np.float32)
        first, last = split_work(rows, thread, threads)
        quantize(matrix(x_at, rows, inputs), first, last, weight.group, weight.factor, codes, scales)
        barrier(threads, state)
        first, last = split_work(-(-outputs // OUTPUTS), thread, threads)
        most = min(rows, MANY)
        spare = matrix(spare_at + thread * most * OUTPUTS * 4, most, OUTPUTS)
        nothing = np.int64(0)
        multiply(weight, first, last, codes, scales, nothing, nothing, matrix(out_at, rows, outputs), spare)
        barrier(threads, state)

    return run
