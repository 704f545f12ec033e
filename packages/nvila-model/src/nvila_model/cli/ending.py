"""How a command ends: an exit code, and one line on standard error if something went wrong.

0: done. 2: the user can mend it (an option, a file, a model). 1: anything else. 130: interrupted.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

TRACEBACK = "NVILA_TRACEBACK"
"""Environment variable: set it to see where an unexpected error comes from."""

INTERRUPTED = 130


class CommandError(ValueError):
    """A request that a command cannot serve; the message is one sentence for the user."""


def exit_code(run: Callable[[], Any]) -> int:
    """Run a command; report what stops it, and return the process's exit code."""
    try:
        with own_warnings():
            code = run()
        sys.stdout.flush()
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        # The reader went away. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        code, message = explain(error)
        print_note(message)
        return code
    if code == INTERRUPTED:
        print_note("interrupted")
    return code if isinstance(code, int) else 0


def explain(error: Exception) -> tuple[int, str]:
    """The exit code and the line for an error."""
    if hasattr(error, "format_message"):  # typer's own errors, of whichever click it stands on
        message: str = error.format_message()  # pyright: ignore[reportAttributeAccessIssue]
        return getattr(error, "exit_code", 2), message.replace("Value error, ", "")  # how typer begins on a choice
    if isinstance(error, ValueError) and type(error).__module__.startswith("nvila_"):
        return 2, str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return 1, f"out of memory: use fewer tiles or frames, a smaller model, or --dtype bfloat16 ({error})"
    if type(error).__name__ == "Abort":
        return INTERRUPTED, "interrupted"
    return 1, f"unexpected {type(error).__name__}: {error} (set {TRACEBACK}=1 to see where)"


def print_note(message: str) -> None:
    """One line on standard error."""
    print("nvila:", " ".join(message.split()), file=sys.stderr, flush=True)


@contextmanager
def own_warnings() -> Iterator[None]:
    """Keep libraries' warnings from the terminal; our own are said as one line."""
    if sys.warnoptions:  # the user asked for warnings
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = show_own_warning
        yield


def show_own_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    if category.__module__.startswith("nvila_"):
        print_note(f"warning: {message}")
