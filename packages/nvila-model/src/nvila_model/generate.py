"""Answers, token by token.

``steps`` is the decode loop: prefill, then one token a row and step through a static cache. ``stream`` turns the
tokens of one conversation into text as it grows; ``generate`` does so for a whole batch and joins the pieces.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from nvila_model.detokenize import TextStream
from nvila_model.fusion import Fused, attention_mask
from nvila_model.inputs import ModelInputs
from nvila_model.qwen2 import Qwen2
from nvila_model.sampling import Sampler, Sampling

if TYPE_CHECKING:
    from nvila_model.nvila import NVILA


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
def steps(llm: Qwen2, fused: Fused, sampling: Sampling) -> Iterator[Tensor]:
    """The ids drawn at each step, ``[b]`` each, without end; the caller stops when it has enough."""
    rows, length = fused.embeds.shape[:2]
    keep = fused.mask
    cache = llm.cache(rows, length + sampling.max_new_tokens)
    sampler = Sampler(sampling, rows=rows, vocabulary=llm.vocab_size, device=fused.embeds.device)
    positions = (keep.cumsum(1) - 1).clamp(min=0)
    ragged = bool((~keep).any())
    hidden = llm(fused.embeds, positions=positions, mask=attention_mask(keep), cache=cache)
    while True:
        drawn = sampler(llm.logits(hidden[:, -1]))
        yield drawn
        keep = torch.cat((keep, keep.new_ones(rows, 1)), dim=1)
        positions = positions[:, -1:] + 1
        mask = keep[:, None, None] if ragged else None
        hidden = llm(llm.embed_tokens(drawn)[:, None], positions=positions, mask=mask, cache=cache)


def stream(model: NVILA, inputs: ModelInputs, sampling: Sampling, *, eos_ids: Sequence[int]) -> Iterator[str]:
    """The text of one answer, piece by piece; the pieces join to the text of ``generate``."""
    if len(inputs.input_ids) != 1:
        raise ValueError(f"{len(inputs.input_ids)} prompts cannot be streamed as one: use generate")
    check_budget(model, inputs, sampling)
    with torch.inference_mode():
        fused = model.embed(inputs)
    text = TextStream(decoder(model), sampling.stop)
    for count, drawn in enumerate(steps(model.llm, fused, sampling), start=1):
        token = int(drawn[0])
        if token not in eos_ids and (piece := text.push(token)):
            yield piece
        if token in eos_ids or text.stopped or count == sampling.max_new_tokens:
            break
    if rest := text.finish():
        yield rest


def generate(model: NVILA, inputs: ModelInputs, sampling: Sampling, *, eos_ids: Sequence[int]) -> list[Answer]:
    """One answer for each row of the batch."""
    prompt_tokens = check_budget(model, inputs, sampling)
    rows = range(len(inputs.input_ids))
    texts = [TextStream(decoder(model), sampling.stop) for _ in rows]
    ids: list[list[int]] = [[] for _ in rows]
    pieces: list[list[str]] = [[] for _ in rows]
    ended = [False for _ in rows]
    started = time.perf_counter()
    with torch.inference_mode():
        fused = model.embed(inputs)
    encoded = prefilled = time.perf_counter()
    for count, drawn in enumerate(steps(model.llm, fused, sampling), start=1):
        for row, token in enumerate(drawn.tolist()):
            if ended[row]:
                continue
            ids[row].append(token)
            if token not in eos_ids:
                pieces[row].append(texts[row].push(token))
            ended[row] = token in eos_ids or texts[row].stopped
        if count == 1:
            prefilled = time.perf_counter()
        if all(ended) or count == sampling.max_new_tokens:
            break
    timings = Timings(encode=encoded - started, prefill=prefilled - encoded, decode=time.perf_counter() - prefilled)
    return [
        Answer(
            text="".join((*pieces[row], texts[row].finish())),
            ids=tuple(ids[row]),
            finish="stop" if ended[row] else "length",
            prompt_tokens=prompt_tokens[row],
            timings=timings,
        )
        for row in rows
    ]


def decoder(model: NVILA) -> Callable[[Sequence[int]], str]:
    """Ids to text without special tokens."""
    return partial(model.needed_processor().tokenizer.decode, skip_special_tokens=True)


def check_budget(model: NVILA, inputs: ModelInputs, sampling: Sampling) -> tuple[int, ...]:
    """Positions of each prompt, before anything is computed.

    Raises: BudgetError if a prompt and its answer do not fit the language model.
    """
    counts = inputs.token_counts(model.image_tokens, model.video_tokens)
    limit = model.context_length
    for row, count in enumerate(counts):
        if count + sampling.max_new_tokens <= limit:
            continue
        media = [slot for slot in inputs.media_plan if slot.row == row]
        images = [model.image_tokens(inputs.images[slot.index]) for slot in media if slot.kind == "image"]
        videos = [model.video_tokens(inputs.videos[slot.index]) for slot in media if slot.kind == "video"]
        raise BudgetError(
            f"{len(images)} images of {sum(images)} tokens, {len(videos)} videos of {sum(videos)} and "
            f"{count - sum(images) - sum(videos)} of text, with {sampling.max_new_tokens} for the answer, make "
            f"{count + sampling.max_new_tokens} > {limit}: lower max_tiles, the number of frames or max_new_tokens"
        )
    return counts
