"""A conversation of several turns that remembers what was said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Unpack

from nvila_model.generation.decoding import Answer, Stream
from nvila_model.generation.sampling import Sampling, SamplingOptions, sampling_of
from nvila_model.inputs.messages import Message
from nvila_model.network.vlm import VLM


class Chat:
    """Questions and answers in turn; each question is asked with all turns before it.

    Args:
        model: that answers.
        sampling: how answers are drawn.
        messages: turns to begin with, such as a system message.
    """

    def __init__(self, model: VLM, sampling: Sampling, messages: Sequence[Message] = ()) -> None:
        self.model, self.sampling = model, sampling
        self.messages: list[Message] = list(messages)

    def ask(self, *content: Any, **options: Unpack[SamplingOptions]) -> Answer:
        """The answer to a question of texts, images and videos; both are remembered.

        Raises: MediaError, BudgetError; nothing is remembered then.
        """
        stream, turn = self.begin(content, options)
        for _ in stream:
            pass
        self.messages += [turn, {"role": "assistant", "content": stream.answer.text}]
        return stream.answer

    def stream(self, *content: Any, **options: Unpack[SamplingOptions]) -> Iterator[str]:
        """The same piece by piece; an answer that is broken off is remembered as far as it came."""
        stream, turn = self.begin(content, options)
        try:
            yield from stream
        finally:
            stream.close()
            self.messages += [turn, {"role": "assistant", "content": stream.answer.text}]

    def begin(self, content: Sequence[Any], options: SamplingOptions) -> tuple[Stream, Message]:
        """A question as a stream, and as a message."""
        turn = {"role": "user", "content": list(content)}
        processor = self.model.needed_processor()
        inputs = processor([*self.messages, turn])
        drawn = sampling_of(self.sampling, options)
        return Stream(self.model, inputs, drawn, eos_ids=processor.tokenizer.eos_ids), turn
