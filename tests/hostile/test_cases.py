"""Files like those of public bug reports (shared/cases), each with what is right for it."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from nvila_model.inputs.media import Image, MediaError, Video
from nvila_tiling import SingleTile

CASES = Path(__file__).parents[3] / "shared" / "cases"
ROWS = json.loads((CASES / "cases.json").read_text()) if CASES.is_dir() else []
FRAMES = {"base.mp4": 30, "display_hflip.mp4": 30, "display_rotationv090.mp4": 30, "udta_first.mp4": 30,
          "cover_first.mp4": 30, "h264_b.avi": 100, "h264_b.mkv": 100, "joined_interleaved.ts": 75, "raw.h264": 100,
          "rec.mkv": 30, "rec_frag.mp4": 30, "pal8.avi": 10, "vp8.ivf": 120,
          "a.webp": 6, "a.avif": 6, "a.png": 6, "a.gif": 6}  # fmt: skip


@pytest.mark.skipif(not ROWS, reason="no ../shared/cases")
@pytest.mark.parametrize("file", [row["file"] for row in ROWS] or ["none"])
def test_a_file_that_people_have(file: str) -> None:
    path = CASES / file
    if path.name in ("damaged.avif", "damaged.blp", "song.mp3"):
        with pytest.raises(MediaError) as refusal:
            Video(path).load() if path.suffix == ".mp3" else Image(path).load()
        assert "\n" not in str(refusal.value)
        return
    if path.parent.name == "images":
        assert SingleTile(tile=28)(Image(path).load()).tiles.shape == (1, 3, 28, 28)
        return
    count = FRAMES.get(path.name, 8)
    seen = Video(path).load(num_frames=count)
    assert not seen.failed
    assert len(set(seen.timestamps)) == count
    assert list(seen.timestamps) == sorted(seen.timestamps)
    if path.name == "udta_first.mp4":
        assert seen.frames[0].size == (128, 96)


@pytest.mark.skipif(not ROWS, reason="no ../shared/cases")
def test_pictures_of_clips_that_say_the_same() -> None:
    def pixels(name: str, count: int) -> np.ndarray:
        frames = Video(CASES / "videos" / name).load(num_frames=count).frames
        return np.stack([np.asarray(frame.convert("RGB")) for frame in frames])

    base = pixels("base.mp4", 30)
    assert np.array_equal(pixels("display_hflip.mp4", 30), base[:, :, ::-1])
    assert np.array_equal(pixels("h264_b.avi", 100), pixels("raw.h264", 100))
    assert pixels("pal8.avi", 3)[1].std() > 5  # in colour also after a seek
    moving = pixels("a.webp", 6)
    assert all(not np.array_equal(one, other) for one, other in pairwise(moving))
