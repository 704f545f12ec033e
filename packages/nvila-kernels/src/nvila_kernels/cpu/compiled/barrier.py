"""How the threads of a program wait for each other, for numba."""

# pyright: basic, reportCallIssue=false, reportArgumentType=false
import os

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from nvila_kernels.cpu.compiled.threads import COUNTER, GATE

STARTED = 1
"""The gate of a run that the first thread has begun."""
PATIENCE = 2000
"""Looks at a number before a thread lets others have its core between two."""
PAUSE = "llvm.x86.sse2.pause"
LONG = ir.IntType(64)


@intrinsic
def arrive(context, state):
    """Adds one to the counter and returns what it was."""

    def generate(context, builder, signature, arguments):
        return builder.atomic_rmw("add", number_at(builder, arguments[0], COUNTER), ir.Constant(LONG, 1), "acq_rel")

    return types.int64(state), generate


@intrinsic
def arrived(context, state):
    """The counter, after a moment."""
    return types.int64(state), looking_at(COUNTER)


@intrinsic
def gate_of(context, state):
    """The gate, after a moment."""
    return types.int64(state), looking_at(GATE)


@intrinsic
def open_gate(context, state):
    """Let the other threads in."""

    def generate(context, builder, signature, arguments):
        place = number_at(builder, arguments[0], GATE)
        builder.store_atomic(ir.Constant(LONG, STARTED), place, "release", 8)
        return context.get_dummy_value()

    return types.void(state), generate


def looking_at(index: int):
    def generate(context, builder, signature, arguments):
        pause = builder.module.globals.get(PAUSE) or ir.Function(
            builder.module, ir.FunctionType(ir.VoidType(), []), PAUSE
        )
        builder.call(pause, [])
        return builder.load_atomic(number_at(builder, arguments[0], index), "acquire", 8)

    return generate


def number_at(builder, address, index: int):
    return builder.inttoptr(builder.add(address, ir.Constant(LONG, 8 * index)), LONG.as_pointer())


if hasattr(os, "sched_yield"):
    let_others = types.ExternalFunction("sched_yield", types.int32())
else:

    @njit
    def let_others():
        """Windows has no such function; its threads lose the core when their time is over."""


@njit(nogil=True, error_model="numpy")
def started(thread, state):
    """Whether to run: once the first thread has come, or not at all if it never will."""
    if thread == 0:
        open_gate(state)
        return True
    looks = 0
    gate = gate_of(state)
    while gate == 0:
        looks += 1
        if looks > PATIENCE:
            let_others()
        gate = gate_of(state)
    return gate == STARTED


@njit(nogil=True, error_model="numpy")
def barrier(threads, state):
    """Returns when all threads have called it."""
    if threads == 1:
        return
    everyone = (arrive(state) // threads + 1) * threads
    looks = 0
    while arrived(state) < everyone:
        looks += 1
        if looks > PATIENCE:
            let_others()


@njit(nogil=True, error_model="numpy")
def split_work(count, thread, threads):
    """First and last of so many things that a thread does."""
    return count * thread // threads, count * (thread + 1) // threads
