"""One hostile input: what is done with it, and what is right."""

import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Right = Literal["opens", "refused", "either"]


@dataclass(frozen=True, kw_only=True)
class Case:
    """An input of a kind.

    Attributes:
        name: says what is odd about it.
        call: reads it; may check what came of it by ``assert``.
        right: whether it is to be read, refused in one sentence, or either of them.
    """

    name: str
    call: Callable[[], Any]
    right: Right = "either"

    def problem(self) -> str:
        """What is wrong with how it ended; nothing if all is right."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.call()
        except Exception as error:
            own = isinstance(error, ValueError) and type(error).__module__.startswith("nvila_")
            if not own:
                return f"{type(error).__name__}: {error}"[:200] + traceback.format_exc(limit=-2)[-300:]
            if "\n" in str(error) or len(str(error)) > 600:
                return f"not one sentence: {str(error)[:200]!r}"
            return f"refused: {error}" if self.right == "opens" else ""
        return "was not refused" if self.right == "refused" else ""
