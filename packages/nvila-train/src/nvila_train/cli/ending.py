"""How a command ends: what a user can mend ends in one line, with code 2 for the command line and 1 for a run."""

import sys
from typing import NoReturn

INTERRUPTED = 130


def end(code: int, message: str) -> NoReturn:
    """End with one line on standard error."""
    print("nvila-train:", " ".join(message.split()), file=sys.stderr, flush=True)
    sys.exit(code)


def end_with(error: Exception) -> NoReturn:
    """End for an error; one that no user can mend is raised again."""
    if hasattr(error, "format_message"):  # typer's own errors, of whichever click it stands on
        message: str = error.format_message()  # pyright: ignore[reportAttributeAccessIssue]
        end(getattr(error, "exit_code", 2), message.replace("Value error, ", ""))  # how typer begins on a choice
    if isinstance(error, (ValueError, OSError, RuntimeError)):
        end(1, str(error))
    raise error
