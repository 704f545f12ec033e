"""The example pictures, clips and answers are those that their program draws."""

import json
import runpy
import sys
from pathlib import Path

import av
import numpy as np
import PIL.Image
import pytest

EXAMPLES = Path(__file__).parents[3] / "examples"


def pixels(path: Path) -> np.ndarray:
    if path.suffix == ".png":
        return np.asarray(PIL.Image.open(path)).astype(int)
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]).astype(int)


def test_redrawn_from_their_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["draw_examples.py", str(tmp_path)])
    runpy.run_path(str(EXAMPLES / "draw_examples.py"), run_name="__main__")
    answers = json.loads((EXAMPLES / "answers.json").read_text())
    assert answers == json.loads((tmp_path / "answers.json").read_text())
    for name in {Path(answer["media"]).name for answer in answers}:
        drawn, kept = pixels(tmp_path / name), pixels(EXAMPLES / name)
        assert drawn.shape == kept.shape, name
        assert np.abs(drawn - kept).mean() < 2, name  # another FreeType may smooth edges otherwise


def test_a_receipt_asks_for_its_total() -> None:
    answers = json.loads((EXAMPLES / "answers.json").read_text())
    kept = {answer["media"]: answer for answer in answers if answer["question"] == "What is the total?"}
    assert "examples/receipt.png" in kept
    assert len({answer["media"] for answer in answers}) >= 10
    assert all((EXAMPLES.parent / answer["media"]).is_file() for answer in answers)
