"""Choosing the next token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypedDict

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How an answer is drawn. The default is greedy: always the best token.

    Args:
        max_new_tokens: the answer is cut after this many tokens; None: after 512, or what the context leaves.
        temperature: 0 is greedy; 1 draws from the model's own distribution.
        top_k: draw from the best ``top_k`` tokens only; 0 from all.
        top_p: draw from the smallest set of tokens whose probabilities sum to at least ``top_p``.
        repetition_penalty: scores of tokens already in the answer are divided (if positive) or multiplied (if
            negative) by this; 1 leaves them.
        seed: makes a draw repeatable; each row of a batch draws as it would alone.
        stop: the answer ends before the first of these strings.

    Raises: ValueError for a number out of its range.
    """

    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        limits = {
            "max_new_tokens": (self.max_new_tokens is None or self.max_new_tokens >= 1, "at least 1"),
            "temperature": (self.temperature >= 0, "0 (greedy) or more"),
            "top_k": (self.top_k >= 0, "0 (all tokens) or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "repetition_penalty": (self.repetition_penalty > 0, "above 0"),
            "stop": (not isinstance(self.stop, str) and all(self.stop), "a tuple of strings that are not empty"),
        }
        for name, (fine, allowed) in limits.items():
            if not fine:
                raise ValueError(f"{name} is {getattr(self, name)!r}: it must be {allowed}")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


class SamplingOptions(TypedDict, total=False):
    """The fields of ``Sampling`` as keywords."""

    max_new_tokens: int | None
    temperature: float
    top_k: int
    top_p: float
    repetition_penalty: float
    seed: int | None
    stop: Sequence[str]


def sampling_of(sampling: Sampling | None, options: SamplingOptions) -> Sampling:
    """What ``sampling`` says, or the default, with some of it replaced.

    Raises: TypeError for an option that ``Sampling`` does not have, ValueError for a number out of its range.
    """
    known = [field.name for field in fields(Sampling)]
    changes: dict[str, Any] = dict(options)
    for name in changes:
        if name not in known:
            raise TypeError(f"{name} is no option of an answer: use {', '.join(known)}")
    stop = changes.get("stop")
    if isinstance(stop, Sequence) and not isinstance(stop, str):
        changes["stop"] = tuple(stop)
    return replace(sampling or Sampling(), **changes)


class Sampler:
    """Draws one token a row and step.

    Shapes: scores ``[b, vocabulary]`` -> ids ``[b]``.
    """

    def __init__(self, sampling: Sampling, *, rows: int, vocabulary: int, device: torch.device) -> None:
        self.sampling = sampling
        self.generators = [torch.Generator(device=device) for _ in range(rows)]
        for generator in self.generators:
            generator.seed() if sampling.seed is None else generator.manual_seed(sampling.seed)
        self.seen = torch.zeros(rows, vocabulary, dtype=torch.bool, device=device)

    def __call__(self, scores: Tensor) -> Tensor:
        scores = penalized(scores.float(), self.seen, self.sampling.repetition_penalty)
        if self.sampling.greedy:
            drawn = scores.argmax(-1)
        else:
            chances = distribution(scores, self.sampling)
            rows = zip(chances, self.generators, strict=True)
            drawn = torch.cat([torch.multinomial(row, 1, generator=generator) for row, generator in rows])
        self.seen.scatter_(1, drawn[:, None], True)
        return drawn


def penalized(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Scores with seen tokens made less likely. Shapes: ``[b, v]``, bool ``[b, v]`` -> ``[b, v]``."""
    if penalty == 1:
        return scores
    return torch.where(seen, torch.where(scores > 0, scores / penalty, scores * penalty), scores)


def distribution(scores: Tensor, sampling: Sampling) -> Tensor:
    """Probabilities after temperature, then top-k, then top-p. Shapes: ``[b, v]`` -> ``[b, v]``."""
    scores = scores / sampling.temperature
    if 0 < sampling.top_k < scores.shape[-1]:
        worst = scores.topk(sampling.top_k).values[..., -1:]
        scores = scores.masked_fill(scores < worst, -torch.inf)
    chances = scores.softmax(-1)
    if sampling.top_p < 1:
        ordered, order = chances.sort(-1, descending=True)
        surplus = ordered.cumsum(-1) - ordered >= sampling.top_p
        chances = chances.masked_fill(surplus.scatter(-1, order, surplus), 0.0)
    return chances
