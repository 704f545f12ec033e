"""Which frames of a video to look at.

Two questions, two rules. "Show me the whole video in n frames" is ``spread``. "Show me so many frames a
second" is ``at_rate``; where that needs more frames than the model takes, it falls back to ``spread``, so
the end of a long video is seen too. ``cut_at_rate`` is the reference's rule for the second question, kept
for parity: it stops at the limit, and a rate above the video's own repeats frames.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

# Two time stamps closer than this are the same instant: containers round to their time base.
SAME_INSTANT = 1e-4

_MANY = 64


def spread(count: int, num_frames: int) -> list[int]:
    """``round(linspace(0, count - 1, num_frames))``: first and last frame included, halves to even.

    More frames than there are repeats some, as in the reference.
    """
    _check(count, num_frames)
    return [int(index) for index in np.round(np.linspace(0, count - 1, num_frames))]


def at_rate(times: Sequence[float], *, fps: float, num_frames: int) -> list[int]:
    """The frame on screen at 0, 1/fps, 2/fps, ... seconds; ``spread`` where that is over ``num_frames``.

    Args:
        times: seconds at which each frame appears, ascending.
        fps: frames a second; a rate above the video's own gives every frame once.
        num_frames: the limit.
    """
    _check(len(times), num_frames)
    if fps <= 0:
        raise ValueError(f"fps is {fps}, not above 0: leave it out to spread num_frames over the video")
    start, end = times[0], times[-1]
    count = int((end - start) * fps + SAME_INSTANT) + 1
    if count > _MANY * len(times):
        # More instants than frames by far: ask of each frame whether an instant falls on it.
        since = np.asarray(times) - start - SAME_INSTANT
        first = np.maximum(np.ceil(since * fps), 0)
        shown = np.append(first[1:], np.inf) > first
        chosen = [int(index) for index in np.flatnonzero(shown & (first < count))]
    else:
        instants = start + np.arange(count) / fps
        chosen = list(dict.fromkeys(bisect_right(times, instant + SAME_INSTANT) - 1 for instant in instants))
    return chosen if len(chosen) <= num_frames else spread(len(times), num_frames)


def cut_at_rate(count: int, *, rate: float, fps: float, num_frames: int) -> list[int]:
    """The reference's choice by fps: ``int(t * rate)`` for t = 0, 1/fps, ... below the video's length.

    Only the first ``num_frames`` are kept, so a longer video is never seen to its end.
    Source: golden ``frame_sampling.json``, ``file`` with fps above 0.
    """
    _check(count, num_frames)
    if rate <= 0:
        return []
    step = 1.0 / fps
    times = np.arange(min(num_frames, math.ceil(count / rate / step))) * step
    return [int(time * rate) for time in times]


def _check(count: int, num_frames: int) -> None:
    if count < 1:
        raise ValueError("a video of 0 frames has none to choose from")
    if num_frames < 1:
        raise ValueError(f"num_frames is {num_frames}, at least 1 is needed")
