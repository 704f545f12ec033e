"""What is said of media that cannot be used, in one sentence, whatever a library raised."""

from collections.abc import Iterator
from contextlib import contextmanager

#: Longest part of a stranger's text that a message repeats.
LONGEST = 160


class MediaError(ValueError):
    """An image or video that cannot be used; the message is one sentence for the user."""


class MediaWarning(UserWarning):
    """Media that could be used only in part, and which part."""


@contextmanager
def as_media_error(sentence: str) -> Iterator[None]:
    """Turn whatever a library raises inside into ``MediaError("<sentence>: <its reason>")``.

    Libraries that read files raise nearly every type that Python has (SyntaxError, struct.error, RuntimeError,
    NotImplementedError, MemoryError ...); a list of the expected ones is never complete.
    """
    try:
        yield
    except MediaError:
        raise
    except Exception as error:
        raise MediaError(f"{sentence}: {reason(error)}") from None


def reason(error: BaseException) -> str:
    """What an error says, as one short line; its type where it says nothing."""
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    strerror = getattr(error, "strerror", None)
    return shown(strerror if isinstance(strerror, str) and strerror else str(error)) or type(error).__name__


def shown(text: object, longest: int = LONGEST) -> str:
    """A stranger's text as part of a sentence: one line, printable, its middle left out where it is long."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in str(text)).split())
    half = longest // 2
    return line if len(line) <= longest else f"{line[:half]}...{line[-half // 2 :]}"
