"""A few rows of a product with 64 outputs or less, in registers from the first group of inputs to the last.

``out[r, j] = start[r, j] + sum_g scale[g, j] a[r, g] (sum_i code[g, i, j] x[r, g, i] - zero[g, j] sum_i x[r, g, i])``

where ``x`` are activations as int8 and ``a`` their scales. Codes are unsigned and activations signed, as the
instructions want them; zero points come off once a group, by the sums of the activations.

This is LLVM's language written by llvmlite, since nothing else in Python names vector instructions.
"""

# pyright: basic, reportCallIssue=false, reportArgumentType=false
from functools import cache

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from nvila_kernels.cpu.compiled.instructions import Instructions
from nvila_kernels.cpu.compiled.layout import OCTET, OUTPUTS

BYTE, SHORT, WORD, LONG = (ir.IntType(bits) for bits in (8, 16, 32, 64))
HALF, FLOAT = ir.HalfType(), ir.FloatType()
FUSED = ("contract",)
"""A product and a sum may be rounded once."""


@cache
def tile(instructions: Instructions, *, rows: int, vectors: int):
    """A function for numba that takes integers, all of them addresses or counts of bytes but ``groups`` and ``octets``.

    weight: of the block.
    first: output of the block that is the tile's first.
    groups, octets, stride: groups of inputs, octets in a group, and from group to group.
    codes, inputs: int8 activations of the first row, and from row to row.
    scales, scale_step: float32, for each group the activations' scale and their sum, and from row to row.
    start, start_step: float32 to begin with, 0 for zeros, and from row to row.
    out, out_step: float32 that is written, and from row to row.
    """

    @intrinsic
    def multiply(
        context,
        weight,
        first,
        groups,
        octets,
        stride,
        codes,
        inputs,
        scales,
        scale_step,
        start,
        start_step,
        out,
        out_step,
    ):
        def generate(context, builder, signature, arguments):
            Tile(builder, instructions, rows, vectors).write(*arguments)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 13), generate

    return multiply


class Tile:
    """Writes the instructions of one tile.

    Args:
        builder: where they go.
        instructions: that the processor has.
        rows, vectors: of the tile; a vector is as many outputs as it has lanes.
    """

    def __init__(self, builder: ir.IRBuilder, instructions: Instructions, rows: int, vectors: int) -> None:
        self.builder, self.instructions = builder, instructions
        self.lanes = instructions.lanes
        self.rows, self.vectors = range(rows), range(vectors)
        self.floats, self.words = ir.VectorType(FLOAT, self.lanes), ir.VectorType(WORD, self.lanes)
        self.bytes = ir.VectorType(BYTE, 4 * self.lanes)
        self.shorts = ir.VectorType(SHORT, 2 * self.lanes)

    def write(
        self, weight, first, groups, octets, stride, codes, inputs, scales, scale_step, start, start_step, out, out_step
    ) -> None:
        builder = self.builder
        start = builder.select(
            builder.icmp_signed("!=", start, number(0)), builder.add(start, self.times(first, 4)), start
        )
        out = builder.add(out, self.times(first, 4))
        totals = [[self.begun(start, start_step, row, vector) for vector in self.vectors] for row in self.rows]
        sums = [[cgutils.alloca_once(builder, self.words) for _ in self.vectors] for _ in self.rows]
        with cgutils.for_range(builder, groups) as group:
            lines = builder.add(weight, builder.mul(group.index, stride))
            read = builder.add(codes, builder.mul(group.index, self.times(octets, OCTET)))
            for each in self.each(sums):
                builder.store(constant(self.words, 0), each)
            some = self.instructions.octets
            with cgutils.for_range(builder, builder.sdiv(octets, number(some))) as step:
                octet = self.times(step.index, some)
                at = builder.add(lines, self.times(builder.add(self.times(octet, OUTPUTS), first), 4))
                self.add(sums, some, at, builder.add(read, self.times(octet, OCTET)), inputs)
            tail = builder.add(lines, self.times(octets, 4 * OUTPUTS))
            for vector in self.vectors:
                scale, zero = self.scale_and_zero(tail, first, vector)
                for row in self.rows:
                    a = builder.add(builder.add(scales, self.times(scale_step, row)), self.times(group.index, 8))
                    total = self.scaled(builder.load(sums[row][vector]), scale, zero, a)
                    before = builder.load(totals[row][vector])
                    builder.store(builder.fadd(before, total, flags=FUSED), totals[row][vector])
        for row in self.rows:
            for vector in self.vectors:
                address = self.offset(builder.add(out, self.times(out_step, row)), 4 * self.lanes * vector)
                place = builder.inttoptr(address, self.floats.as_pointer())
                builder.store(builder.load(totals[row][vector]), place, align=4)

    def begun(self, start, step, row: int, vector: int):
        """Where a sum of floats is kept; it begins with what stands at ``start``, or with zeros."""
        builder = self.builder
        place = cgutils.alloca_once(builder, self.floats)
        builder.store(constant(self.floats, 0.0), place)
        with builder.if_then(builder.icmp_signed("!=", start, number(0))):
            address = self.offset(builder.add(start, self.times(step, row)), 4 * self.lanes * vector)
            builder.store(self.read(address, self.floats, 4), place)
        return place

    def halves(self, address):
        """The codes of four inputs, and those of the next four."""
        builder = self.builder
        both = self.read(address, self.bytes, 4 * self.lanes)
        mask, four = constant(self.bytes, 15), constant(self.shorts, 4)
        upper = builder.bitcast(builder.lshr(builder.bitcast(both, self.shorts), four), self.bytes)
        return builder.and_(both, mask), builder.and_(upper, mask)

    def add(self, sums, octets: int, lines, codes, inputs) -> None:
        """Products of some octets onto the sums of words."""
        builder = self.builder
        found = [[self.opened(place) for place in row] for row in sums]
        for octet in range(octets):
            at = self.offset(lines, 4 * OUTPUTS * octet)
            halves = [self.halves(self.offset(at, 4 * self.lanes * vector)) for vector in self.vectors]
            for row in self.rows:
                x = self.offset(builder.add(codes, self.times(inputs, row)), OCTET * octet)
                fours = self.everywhere(x, 0), self.everywhere(x, OCTET // 2)
                for vector in self.vectors:
                    for half, four in zip(halves[vector], fours, strict=True):
                        found[row][vector] = self.summed(found[row][vector], half, four)
        for row, places in zip(found, sums, strict=True):
            for total, place in zip(row, places, strict=True):
                builder.store(self.closed(total, place), place)

    def opened(self, place):
        """What products are added to: sums of words, or sums of 16 bits that are new."""
        return self.builder.load(place) if self.instructions.dots else constant(self.shorts, 0)

    def summed(self, total, code, x):
        """Products of four inputs more."""
        if self.instructions.dots:
            name = f"llvm.x86.avx512.vpdpbusd.{32 * self.lanes}"
            return self.call(name, self.words, total, *(self.builder.bitcast(each, self.words) for each in (code, x)))
        return self.builder.add(total, self.call("llvm.x86.avx2.pmadd.ub.sw", self.shorts, code, x))

    def closed(self, total, place):
        """The sums of words with what was added."""
        if self.instructions.dots:
            return total
        pairs = self.call("llvm.x86.avx2.pmadd.wd", self.words, total, constant(self.shorts, 1))
        return self.builder.add(self.builder.load(place), pairs)

    def scale_and_zero(self, address, first, vector: int):
        """Of a group, as floats."""
        builder = self.builder
        halves, few = ir.VectorType(HALF, self.lanes), ir.VectorType(BYTE, self.lanes)
        output = self.offset(first, self.lanes * vector)
        scale = self.read(builder.add(address, self.times(output, 2)), halves, 2)
        zero = self.read(builder.add(self.offset(address, 2 * OUTPUTS), output), few, 1)
        return builder.fpext(scale, self.floats), builder.uitofp(zero, self.floats)

    def scaled(self, total, scale, zero, address):
        """A group's sums of integers as floats; ``address`` has the scale of the row's activations and their sum."""
        builder = self.builder
        a, x = (self.splat(self.read(self.offset(address, place), FLOAT, 4)) for place in (0, 4))
        difference = builder.fsub(builder.sitofp(total, self.floats), builder.fmul(zero, x, flags=FUSED), flags=FUSED)
        return builder.fmul(difference, builder.fmul(scale, a, flags=FUSED), flags=FUSED)

    def everywhere(self, address, place: int):
        """Four bytes, again and again."""
        four = self.splat(self.read(self.offset(address, place), WORD, 1))
        return self.builder.bitcast(four, self.bytes)

    def splat(self, value):
        kind = ir.VectorType(value.type, self.lanes)
        nothing = ir.Constant(kind, ir.Undefined)
        first = self.builder.insert_element(nothing, value, ir.Constant(WORD, 0))
        return self.builder.shuffle_vector(first, nothing, constant(ir.VectorType(WORD, self.lanes), 0))

    def read(self, address, kind, align: int):
        return self.builder.load(self.builder.inttoptr(address, kind.as_pointer()), align=align)

    def offset(self, address, count: int):
        return self.builder.add(address, number(count))

    def times(self, value, count: int):
        return self.builder.mul(value, number(count))

    def call(self, name: str, kind, *arguments):
        module = self.builder.module
        function = module.globals.get(name)
        if function is None:
            function = ir.Function(module, ir.FunctionType(kind, [each.type for each in arguments]), name)
        return self.builder.call(function, arguments)

    def each(self, places):
        return (place for row in places for place in row)


def number(value: int):
    return ir.Constant(LONG, value)


def constant(kind: ir.VectorType, value: float):
    """A vector with one value everywhere."""
    return ir.Constant(kind, [value] * kind.count)
