"""Answers, token by token.

``steps`` is the decode loop: prefill, then one token a row and step through a static cache. A ``Writer`` turns the
tokens of one row into text. ``Stream`` gives one answer as it grows; ``generate`` writes a whole batch and joins the
pieces.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from nvila_model.generation.detokenize import TextStream
from nvila_model.generation.prompt import prefill
from nvila_model.generation.sampling import Sampler, Sampling
from nvila_model.inputs.model_inputs import ModelInputs
from nvila_model.network.fusion import Fused
from nvila_model.network.masks import padding_mask
from nvila_model.network.qwen2 import Qwen2
from nvila_model.network.vlm import VLM

LONGEST = 512
"""Tokens of an answer, where no other number is asked for and the context has room for them."""


class BudgetError(ValueError):
    """More positions are asked for than the language model was made for."""


@dataclass(frozen=True, kw_only=True)
class Timings:
    """Seconds of wall clock: media and text to embeddings, the prompt through the LLM, all further tokens."""

    encode: float
    prefill: float
    decode: float


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer.

    Attributes:
        text: without special tokens and outer white space.
        ids: the tokens drawn, the end token included.
        finish: ``stop`` at an end token or stop string, ``length`` at ``max_new_tokens``.
        prompt_tokens: positions taken by the prompt with its media.
        timings: of the whole batch.
    """

    text: str
    ids: tuple[int, ...]
    finish: Literal["stop", "length"]
    prompt_tokens: int
    timings: Timings


@torch.inference_mode()
def steps(llm: Qwen2, fused: Fused, sampling: Sampling, longest: int) -> Iterator[Tensor]:
    """The ids drawn at each step, ``[b]`` each, without end; the caller stops after ``longest`` at the latest."""
    rows, length = fused.embeds.shape[:2]
    keep = fused.mask
    cache = llm.cache(rows, length + longest)
    sampler = Sampler(sampling, rows=rows, vocabulary=llm.vocab_size, device=fused.embeds.device)
    positions = (keep.cumsum(1) - 1).clamp(min=0)
    ragged = bool((~keep).any())
    last = prefill(llm, fused.embeds, positions=positions, mask=padding_mask(keep), cache=cache)
    while True:
        drawn = sampler(llm.logits(last))
        yield drawn
        positions = positions[:, -1:] + 1
        mask = None
        if ragged:
            keep = torch.cat((keep, keep.new_ones(rows, 1)), dim=1)
            mask = keep[:, None, None]
        last = llm(llm.embed_tokens(drawn)[:, None], positions=positions, mask=mask, cache=cache)[:, -1]


class Writer:
    """What one row has written so far.

    Args:
        text: takes its tokens.
        eos_ids: tokens that end it.
    """

    def __init__(self, text: TextStream, eos_ids: Sequence[int]) -> None:
        self.eos_ids = eos_ids
        self.ids: list[int] = []
        self.ended = False
        self._text = text
        self._pieces: list[str] = []

    def take(self, token: int) -> str:
        """One more token; the text that is certain with it, often none."""
        self.ids.append(token)
        piece = "" if token in self.eos_ids else self._text.push(token)
        self.ended = token in self.eos_ids or self._text.stopped
        self._pieces.append(piece)
        return piece

    def close(self) -> str:
        """The text that was held back."""
        self._pieces.append(self._text.finish())
        return self._pieces[-1]

    def answer(self, *, prompt_tokens: int, timings: Timings) -> Answer:
        """What was written, as an ``Answer``."""
        return Answer(
            text="".join(self._pieces),
            ids=tuple(self.ids),
            finish="stop" if self.ended else "length",
            prompt_tokens=prompt_tokens,
            timings=timings,
        )


class Stream(Iterator[str]):
    """One answer, piece by piece; the pieces join to the text of ``generate``.

    The media are looked at when it is made, the prompt is read at the first piece (or by ``prefill``), and ``answer``
    says at any time what has been written, with counts and seconds.

    Args:
        inputs: one prompt.
        eos_ids: tokens that end the answer.

    Raises: ValueError for more than one prompt, BudgetError if it does not fit the language model.
    """

    def __init__(self, model: VLM, inputs: ModelInputs, sampling: Sampling, *, eos_ids: Sequence[int]) -> None:
        if len(inputs.input_ids) != 1:
            raise ValueError(f"{len(inputs.input_ids)} prompts cannot be streamed as one: use generate")
        (self.prompt_tokens,), self._limit = check_budget(model, inputs, sampling)
        self._marks = [time.perf_counter()]
        with torch.inference_mode():
            fused = model.embed(inputs)
        self._marks.append(time.perf_counter())
        self._writer = Writer(TextStream(decoder(model), sampling.stop), eos_ids)
        self._drawn = (int(tokens[0]) for tokens in steps(model.llm, fused, sampling, self._limit))
        self._first: int | None = None
        self._closed = False

    def prefill(self) -> None:
        """Read the prompt and draw the first token, if that is not done."""
        if self._first is None:
            self._first = next(self._drawn)
            self._marks += [time.perf_counter()] * 2

    def __next__(self) -> str:
        self.prefill()
        assert self._first is not None
        while not self._closed:
            if self._writer.ended or len(self._writer.ids) == self._limit:
                piece = self.close()
            else:
                piece = self._writer.take(next(self._drawn) if self._writer.ids else self._first)
                self._marks[-1] = time.perf_counter()
            if piece:
                return piece
        raise StopIteration

    def close(self) -> str:
        """End the answer here; the text that was held back."""
        held = "" if self._closed else self._writer.close()
        self._closed = True
        return held

    @property
    def answer(self) -> Answer:
        """What has been written so far; ``finish`` is ``length`` until an end token or a stop string came."""
        marks = (*self._marks, *[self._marks[-1]] * (4 - len(self._marks)))
        encode, prefill, decode = (after - before for before, after in pairwise(marks))
        timings = Timings(encode=encode, prefill=prefill, decode=decode)
        return self._writer.answer(prompt_tokens=self.prompt_tokens, timings=timings)


def generate(model: VLM, inputs: ModelInputs, sampling: Sampling, *, eos_ids: Sequence[int]) -> list[Answer]:
    """One answer for each row of the batch."""
    prompt_tokens, longest = check_budget(model, inputs, sampling)
    writers = [Writer(TextStream(decoder(model), sampling.stop), eos_ids) for _ in inputs.input_ids]
    started = time.perf_counter()
    with torch.inference_mode():
        fused = model.embed(inputs)
    encoded = prefilled = time.perf_counter()
    for count, drawn in enumerate(steps(model.llm, fused, sampling, longest), start=1):
        for writer, token in zip(writers, drawn.tolist(), strict=True):
            if not writer.ended:
                writer.take(token)
        if count == 1:
            prefilled = time.perf_counter()
        if count == longest or all(writer.ended for writer in writers):
            break
    for writer in writers:
        writer.close()
    timings = Timings(encode=encoded - started, prefill=prefilled - encoded, decode=time.perf_counter() - prefilled)
    return [
        writer.answer(prompt_tokens=count, timings=timings)
        for writer, count in zip(writers, prompt_tokens, strict=True)
    ]


def decoder(model: VLM) -> Callable[[Sequence[int]], str]:
    """Ids to text without special tokens."""
    return partial(model.needed_processor().tokenizer.decode, skip_special_tokens=True)


def check_budget(model: VLM, inputs: ModelInputs, sampling: Sampling) -> tuple[tuple[int, ...], int]:
    """Positions of each prompt and the tokens that an answer may have, before anything is computed.

    Where ``sampling`` leaves these open, they are ``LONGEST``, or what the longest prompt leaves of the context.

    Raises: BudgetError if a prompt and its answer do not fit the language model.
    """
    counts = inputs.token_counts(model.image_tokens, model.video_tokens)
    limit = model.context_length
    longest = sampling.max_new_tokens or max(1, min(LONGEST, limit - max(counts)))
    for row, count in enumerate(counts):
        if count + longest <= limit:
            continue
        media = [slot for slot in inputs.media_plan if slot.row == row]
        images = [model.image_tokens(inputs.images[slot.index]) for slot in media if slot.kind == "image"]
        videos = [model.video_tokens(inputs.videos[slot.index]) for slot in media if slot.kind == "video"]
        raise BudgetError(
            f"{len(images)} images of {sum(images)} tokens in all, {len(videos)} videos of {sum(videos)} and "
            f"{count - sum(images) - sum(videos)} of text, with {longest} for the answer, make "
            f"{count + longest} > {limit}: lower max_tiles, the number of frames or max_new_tokens"
        )
    return counts, longest
