"""One answer, stage by stage, so that each can be timed and its text shown as it grows."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from nvila_model.cli.progress import Stopwatch
from nvila_model.generation.decoding import Stream
from nvila_model.generation.sampling import Sampling

if TYPE_CHECKING:
    from nvila_model.inputs.processor import Conversation
    from nvila_model.nvila import NVILA


Finish = Literal["stop", "length", "interrupted"]


@dataclass(frozen=True, kw_only=True)
class TimedAnswer:
    """An answer and what it took.

    Attributes:
        finish: ``stop`` at an end token or stop string, ``length`` at the limit, ``interrupted`` by the user.
        prompt_tokens: positions taken by the prompt with its media.
        new_tokens: tokens drawn, the end token included.
        seconds: wall clock by stage.
    """

    text: str
    finish: Finish
    prompt_tokens: int
    new_tokens: int
    seconds: dict[str, float]

    @property
    def tokens_per_second(self) -> float | None:
        """Of decoding: tokens after the first over the seconds they took; None if there was only one."""
        decode = self.seconds.get("decode", 0.0)
        return (self.new_tokens - 1) / decode if self.new_tokens > 1 and decode > 0 else None

    @property
    def summary(self) -> str:
        """Tokens and seconds in one line."""
        speed = f" at {self.tokens_per_second:.1f} tokens/s" if self.tokens_per_second else ""
        stages = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in self.seconds.items())
        end = {"stop": "", "length": ", cut at the longest answer", "interrupted": ", interrupted"}[self.finish]
        return f"{self.prompt_tokens} prompt tokens, {self.new_tokens} new{speed}{end}; {stages}"

    def to_dict(self) -> dict[str, Any]:
        return {
            "answer": self.text,
            "finish": self.finish,
            "prompt_tokens": self.prompt_tokens,
            "new_tokens": self.new_tokens,
            "seconds": {name: round(seconds, 4) for name, seconds in self.seconds.items()},
            "tokens_per_second": round(self.tokens_per_second, 2) if self.tokens_per_second else None,
        }


def answer(
    model: NVILA,
    messages: Conversation,
    sampling: Sampling,
    *,
    watch: Stopwatch,
    show: Callable[[str], object] | None = None,
) -> TimedAnswer:
    """Answer one conversation. An interruption while it is being written ends the answer there.

    Args:
        watch: stages are added to it.
        show: takes each piece of text as soon as it is certain; the pieces join to the answer.

    Raises: MediaError, BudgetError.
    """
    processor = model.needed_processor()
    with watch.stage("tile", "cutting tiles"):
        inputs = processor(messages)
    with watch.stage("encode", "looking"):
        stream = Stream(model, inputs, sampling, eos_ids=processor.tokenizer.eos_ids)
    with watch.stage("prefill", "reading the prompt"):
        stream.prefill()
    finish: Finish | None = None
    try:
        with watch.stage("decode", None if show else "answering"):
            for piece in stream:
                if show:
                    show(piece)
    except KeyboardInterrupt:
        finish = "interrupted"
        rest = stream.close()
        if show and rest:
            show(rest)
    done = stream.answer
    return TimedAnswer(
        text=done.text,
        finish=finish or done.finish,
        prompt_tokens=done.prompt_tokens,
        new_tokens=len(done.ids),
        seconds=watch.seconds,
    )


def print_piece(piece: str) -> None:
    """Show a piece of an answer on standard output at once."""
    sys.stdout.write(piece)
    sys.stdout.flush()
