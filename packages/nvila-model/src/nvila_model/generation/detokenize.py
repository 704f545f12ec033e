"""From token ids to text as it grows.

A character may span several tokens, a stop string may span several steps, and space at the end of an answer
does not belong to it. So text is held back while it may still change, and pieces that were handed out never
do: their sum is the answer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

UNFINISHED = "\ufffd"
"""What an incomplete character decodes to."""


class TextStream:
    """Collects the ids of one answer and hands out the text that is certain.

    Args:
        decode: ids to text, special tokens left out.
        stop: the answer ends before the first of these.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = tuple(stop)
        self._ids: list[int] = []
        self._held = ""
        self._begun = False
        self.stopped = False

    def push(self, token: int) -> str:
        """Take one id; return the text that has become certain, often none."""
        self._ids.append(token)
        text = self._decode(self._ids)
        if text.endswith(UNFINISHED):
            return ""
        self._ids.clear()
        return self._release(text, final=False)

    def finish(self) -> str:
        """The rest of the text once no more ids come."""
        text = self._decode(self._ids) if self._ids else ""
        self._ids.clear()
        return self._release(text, final=True)

    def _release(self, text: str, *, final: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        places = [place for place in (text.find(word) for word in self._stop) if place >= 0]
        if places:
            self.stopped, text = True, text[: min(places)]
        keep = 0 if final or self.stopped else self._open(text)
        certain = text[: len(text) - keep].rstrip()
        self._held = text[len(certain) :]
        if not self._begun:
            certain = certain.lstrip()
        self._begun = self._begun or bool(certain)
        return certain

    def _open(self, text: str) -> int:
        """Length of the longest end of ``text`` that may be the beginning of a stop string."""
        ends = (n for word in self._stop for n in range(len(word) - 1, 0, -1) if text.endswith(word[:n]))
        return max(ends, default=0)
