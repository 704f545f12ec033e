"""Clips: real video files whose answers show in eight evenly taken frames."""

import io
from itertools import pairwise
from random import Random

import av
import numpy as np
import pytest
from nvila_train.nano.drawing import draw
from nvila_train.nano.drawing.clips import STORIES, draw_clip


def evenly(frames: np.ndarray, count: int = 8) -> np.ndarray:
    return frames[np.linspace(0, len(frames) - 1, count).astype(int)]


def test_encodes_to_a_video_file() -> None:
    for seed in range(6):
        clip = draw("clips", seed=seed).clip
        with av.open(io.BytesIO(clip.encode())) as container:
            stream = container.streams.video[0]
            assert stream.average_rate == clip.fps
            decoded = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        assert decoded.shape == clip.frames.shape
        assert np.abs(decoded.astype(int) - clip.frames.astype(int)).mean() < 8


def test_sizes_and_lengths_vary() -> None:
    clips = [draw("clips", seed=seed).clip for seed in range(60)]
    assert {len(clip.frames) for clip in clips} == {8, 16, 24}
    assert all(64 <= side <= 128 and side % 2 == 0 for clip in clips for side in clip.frames.shape[1:3])
    assert len({clip.fps for clip in clips}) > 4


def lit(frame: np.ndarray) -> bool:
    """Whether anything stands out from the frame's corner."""
    return bool((np.abs(frame.astype(int) - frame[0, 0].astype(int)).max(-1) > 40).mean() > 0.01)


def test_eight_frames_show_every_flash() -> None:
    for seed in range(40):
        scene = draw_clip(Random(seed), "train", "flashes")
        states = [False, *(lit(frame) for frame in evenly(scene.clip.frames))]
        rises = sum(now and not before for before, now in pairwise(states))
        counts = [q.answer for q in scene.questions if q.answer.isdigit()]
        assert counts == [str(rises)] * len(counts)


def test_motion_goes_the_way_it_says() -> None:
    checked = 0
    for seed in range(40):
        scene = draw_clip(Random(seed), "train", "motion")
        if "," in scene.text:
            continue
        middles = []
        for frame in (scene.clip.frames[0], scene.clip.frames[-1]):
            shape = np.abs(frame.astype(int) - frame[0, 0].astype(int)).max(-1) > 40
            middles.append(np.argwhere(shape).mean(0))
        down, right = middles[1] - middles[0]
        way = ("right" if right > 0 else "left") if abs(right) > abs(down) else ("down" if down > 0 else "up")
        assert scene.text.endswith(way)
        checked += 1
    assert checked > 8


@pytest.mark.parametrize("story", STORIES)
def test_answers_need_more_than_one_frame(story: str) -> None:
    for seed in range(20):
        frames = evenly(draw_clip(Random(seed), "train", story).clip.frames).astype(int)
        assert np.abs(frames - frames[0]).max() > 40
