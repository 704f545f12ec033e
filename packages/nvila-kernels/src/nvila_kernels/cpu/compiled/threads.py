"""Threads that run one compiled program at the same time, and what keeps them in step.

numba has threads of its own, which start and end at each loop. A token has hundreds of loops, each a few ten
microseconds long, so here all threads run the whole program, and wait for each other by counting.

A program begins with ``started`` and does nothing where that is false: the caller is one of the threads, Ctrl-C may
keep it from running its part, and then the others must not wait for it. Once it is in the program, nothing of Python
can stop it before the end.
"""

# pyright: basic, reportCallIssue=false, reportArgumentType=false
import os
import threading
import weakref
from functools import cache
from queue import SimpleQueue

import numpy as np
import torch

from nvila_kernels.cpu.compiled.program import Program

COUNTER, GATE = 0, 8
"""Where a run keeps how often threads came to a barrier, and whether it began: a line of the cache each."""
STATE = 16
"""Numbers of both lines."""
CANCELLED = 2
"""The gate of a run that nobody starts any more; 1 is that of one which was started (``barrier``)."""


class ThreadTeam:
    """Some threads, the caller among them; they run one program at a time.

    Args:
        threads: how many.
    """

    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.lock = threading.Lock()
        self.state = np.zeros(STATE, np.int64)
        self.jobs: list[SimpleQueue] = [SimpleQueue() for _ in range(1, threads)]
        for number, jobs in enumerate(self.jobs, 1):
            threading.Thread(target=work, args=(jobs,), name=f"nvila {number}", daemon=True).start()
        weakref.finalize(self, dismiss, self.jobs)

    def run(self, program: Program, arguments: np.ndarray) -> None:
        """Returns when all threads have run it; an interrupted run is one that none of them began.

        Args:
            program: ends with a barrier, or with work of the first thread alone.
            arguments: int64, which the program reads; they and what they point to must live as long as this lasts.
        """
        with self.lock:
            self.state[GATE] = CANCELLED  # of the run before, if Ctrl-C came twice
            self.state = state = np.zeros(STATE, np.int64)
            try:
                for thread, jobs in enumerate(self.jobs, 1):
                    jobs.put((program, thread, self.threads, state, arguments))
                program(0, self.threads, state, arguments)
            except BaseException:
                state[GATE] = CANCELLED
                raise


def work(jobs: SimpleQueue) -> None:
    """What a thread does: one program after the other."""
    while (job := jobs.get()) is not None:
        program, *given = job
        program(*given)
        del job, program, given


def dismiss(every: list[SimpleQueue]) -> None:
    """Let the threads of a team end."""
    for jobs in every:
        jobs.put(None)


@cache
def _team(threads: int, process: int) -> ThreadTeam:
    return ThreadTeam(threads)


def thread_team(threads: int | None = None) -> ThreadTeam:
    """Of this process, with as many threads as torch has now; a process that was forked has none of its parent's."""
    return _team(threads or torch.get_num_threads(), os.getpid())
