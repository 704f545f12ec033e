"""Numbers by their bits and arrays by their addresses, for numba."""

# pyright: basic, reportCallIssue=false, reportPrivateImportUsage=false, reportArgumentType=false
import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

INLINE = {"nogil": True, "error_model": "numpy"}


@intrinsic
def as_float(context, bits):
    """The float32 with these 32 bits."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic
def float_at(context, address):
    """The float32 at an address."""

    def generate(context, builder, signature, arguments):
        return builder.load(builder.inttoptr(arguments[0], ir.FloatType().as_pointer()))

    return types.float32(types.int64), generate


@intrinsic
def pointer(context, address):
    """An address as numba wants it for an array."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


@njit(**INLINE)
def integers(address, count):
    """int64 ``[count]`` that lie at an address."""
    return carray(pointer(address), (count,), np.int64)


@njit(**INLINE)
def vector(address, count):
    """float32 ``[count]``."""
    return carray(pointer(address), (count,), np.float32)


@njit(**INLINE)
def matrix(address, rows, columns):
    """float32 ``[rows, columns]``."""
    return carray(pointer(address), (rows, columns), np.float32)
