"""Threads that run one compiled function together, and where they meet.

numba has threads of its own, which start and end at each loop. A token has hundreds of loops, each a few ten
microseconds long, so here all threads run the whole function, and meet by counting.
"""

# pyright: basic, reportCallIssue=false
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeAlias

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

Program: TypeAlias = Callable[..., None]
"""What every thread of a team calls with its number, how many there are, where they meet, and more; it never fails."""
LINE = 8
"""Counters are so many apart, a line of the processor's cache each."""
PATIENCE = 2000
"""Looks at the counter before a thread lets others have its core between two."""


class Team:
    """Some threads, the caller among them; they run one function at a time."""

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.lock = threading.Lock()
        self.meeting = np.zeros(LINE, dtype=np.int64)
        self.others = ThreadPoolExecutor(threads - 1, thread_name_prefix="nvila") if threads > 1 else None

    def run(self, program: Program, *arguments: object) -> None:
        """Returns when all threads have run it. Those who wait for others in it must not hold the GIL."""
        if self.others is None:
            program(0, 1, self.meeting, *arguments)
            return
        with self.lock:
            running = [
                self.others.submit(program, thread, self.threads, self.meeting, *arguments)
                for thread in range(1, self.threads)
            ]
            program(0, self.threads, self.meeting, *arguments)
            for each in running:
                each.result()


ALONE = Team(1)


@cache
def _team(threads: int, process: int) -> Team:
    return Team(threads)


def team() -> Team:
    """Of this process, with as many threads as torch has now; a process that was forked has none of its parent's."""
    return _team(torch.get_num_threads(), os.getpid())


@intrinsic
def arrive(context, meeting):
    """Adds one to the first of a meeting's counters and tells what it was."""

    def generate(context, builder, signature, arguments):
        return builder.atomic_rmw("add", counter(context, builder, signature, arguments), one(), "acq_rel")

    return types.int64(meeting), generate


@intrinsic
def arrived(context, meeting):
    """The first counter of a meeting, after a moment."""

    def generate(context, builder, signature, arguments):
        place = counter(context, builder, signature, arguments)
        pause = builder.module.globals.get(PAUSE) or ir.Function(
            builder.module, ir.FunctionType(ir.VoidType(), []), PAUSE
        )
        builder.call(pause, [])
        return builder.load_atomic(place, "acquire", 8)

    return types.int64(meeting), generate


PAUSE = "llvm.x86.sse2.pause"


def counter(context, builder, signature, arguments):
    return context.make_array(signature.args[0])(context, builder, arguments[0]).data


def one():
    return ir.Constant(ir.IntType(64), 1)


if hasattr(os, "sched_yield"):
    let_others = types.ExternalFunction("sched_yield", types.int32())
else:

    @njit
    def let_others():
        """Windows has no such function; its threads lose the core when their time is over."""


@njit(nogil=True)
def meet(threads, meeting):
    """Returns when all threads have called it."""
    if threads == 1:
        return
    everyone = (arrive(meeting) // threads + 1) * threads
    looks = 0
    while arrived(meeting) < everyone:
        looks += 1
        if looks > PATIENCE:
            let_others()


@njit
def share(count, thread, threads):
    """First and last of so many things that a thread does."""
    return count * thread // threads, count * (thread + 1) // threads
