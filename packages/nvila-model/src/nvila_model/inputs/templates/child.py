"""A process that renders chat templates, so that one that runs away can be ended with it.

It is started when the first template that is not plain is rendered, serves all such templates of this process,
and is started anew after it had to be ended and after a fork.
"""

import atexit
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

_PROGRAM = "from nvila_model.inputs.templates.sandbox import serve; serve()"

#: Seconds for the process to start, which is Python's and jinja's own time.
_START = 60.0


_NOTHING = {"source": "", "messages": [], "variables": {}, "add_generation_prompt": False}


class ChildError(Exception):
    """A template that failed, or was ended; the message completes "the chat template ..."."""


class _Child:
    """One running process, and the lines that it answers."""

    def __init__(self, memory: int) -> None:
        self.memory = memory
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="ascii",
            env=environment,
            start_new_session=True,  # an interruption by the user is not for it
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        self._send(f"{memory}\n")

    def ask(self, request: str, seconds: float) -> dict[str, str]:
        """Send one line and wait for the answer. Raises: queue.Empty after ``seconds``, EOFError if it died."""
        self._send(request)
        line = self._lines.get(timeout=seconds)
        if not line:
            raise EOFError
        return json.loads(line)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):  # what was not yet written
                    pipe.close()

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except OSError:
            raise EOFError from None

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with suppress(ValueError):  # closed while reading
            for line in self._process.stdout:
                self._lines.put(line)
        self._lines.put("")


_LOCK = threading.Lock()
_CHILD: _Child | None = None


def render_apart(
    source: str,
    messages: Sequence[Mapping[str, Any]],
    variables: Mapping[str, Any],
    *,
    add_generation_prompt: bool,
    seconds: float,
    memory: int,
) -> str:
    """The text of a template, rendered in another process within bounds. Raises: ChildError."""
    global _CHILD
    request = json.dumps(
        {
            "source": source,
            "messages": [dict(message) for message in messages],
            "variables": dict(variables),
            "add_generation_prompt": add_generation_prompt,
        }
    )
    with _LOCK:
        try:
            if _CHILD is None or _CHILD.memory != memory:
                end_child()
                _CHILD = _Child(memory)
                _CHILD.ask(f"{json.dumps(_NOTHING)}\n", _START)  # so that starting is not counted below
            answer = _CHILD.ask(request + "\n", seconds)
        except queue.Empty:
            end_child()
            raise ChildError(f"did not end within {seconds:g} s (Limits.template_seconds)") from None
        except EOFError:
            end_child()
            raise ChildError(f"needs more than {memory} bytes of memory (Limits.template_bytes)") from None
        except OSError as error:
            end_child()
            raise ChildError(f"cannot be rendered: no process for it can be started ({error.strerror})") from None
    if "error" in answer:
        raise ChildError(f"refused the conversation: {answer['error']}")
    return answer["text"]


def end_child() -> None:
    """End the process, if one runs."""
    global _CHILD
    child, _CHILD = _CHILD, None
    if child is not None:
        child.end()


def _forget() -> None:
    """After a fork the process belongs to the parent, and the lock may be held by a thread that is not here."""
    global _CHILD, _LOCK
    _CHILD, _LOCK = None, threading.Lock()


atexit.register(end_child)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
