"""Two tiny models of different widths, and a file of every kind of record."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nvila_model import NVILA
from nvila_train.delta_loss.storage.records import Records
from nvila_train.nano.drawing.scene import Clip
from nvila_train.recipe import Recipe
from PIL import Image

SIZES = """
name = "tiny"
seed = 3
[model]
scales = [16, 32]
max_tiles = 6
projector = "mlp_downsample"
frames = 4
pool = [2, 1, 1]
[vision]
tile = 16
patch = 4
width = 16
layers = 1
heads = 2
mlp_width = 24
[llm]
vocabulary = 300
width = WIDTH
layers = 2
heads = 2
kv_heads = 1
mlp_width = 24
context = 512
[[stage]]
name = "answers"
objective = "answers"
rates = { llm = 1e-2 }
steps = 1
samples = 1
mix = { shapes = 1 }
"""


@pytest.fixture(scope="session")
def make_tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., NVILA]:
    """Make a model of some thousand parameters with nano's tokenizer; another width has other random weights."""
    folder = tmp_path_factory.mktemp("recipes")
    tokenizer = NVILA.from_pretrained("nano").needed_processor().tokenizer

    def make(width: int) -> NVILA:
        path = folder / "tiny.toml"
        path.write_text(SIZES.replace("WIDTH", str(width)))
        torch.manual_seed(width)
        model = NVILA.from_config(Recipe.read(path).config(rows=len(tokenizer)), tokenizer).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        return model

    return make


@pytest.fixture(scope="session")
def models(make_tiny: Callable[..., NVILA]) -> tuple[NVILA, NVILA]:
    return make_tiny(24), make_tiny(16)


def turns(*values: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[place % 2], "value": value} for place, value in enumerate(values)]


@pytest.fixture(scope="session")
def rows() -> list[dict[str, Any]]:
    """Every kind of record, of many lengths, in two sources; one picture is asked about twice."""
    return [
        {"conversations": turns("What?", "no"), "source": "text"},
        {"conversations": turns("<image>\nWhich colour?", "red as a rose"), "image": "wide.png"},
        {"conversations": turns("What is two and two? " * 9, "four"), "source": "text"},
        {"conversations": turns("<image>\n<image>\nCompare.", "they differ"), "image": ["wide.png", "tall.png"]},
        {"conversations": turns("<video>\nWhat happens?", "it moves, then it rests"), "video": "clip.mp4"},
        {"conversations": turns("<image>\nOne?", "1", "Two?", "2 or 3", "Why?", "since so"), "image": "dot.png"},
        {"conversations": turns("Count.", "one two three four five six seven"), "source": "text"},
        {"conversations": turns("Who?", "I", "And then?", "nobody"), "source": "text"},
    ]


@pytest.fixture
def records(tmp_path: Path, rows: list[dict[str, Any]]) -> Records:
    """The records as a file beside their media."""
    rng = np.random.default_rng(0)
    for name, size in (("wide", (10, 3)), ("tall", (7, 40)), ("dot", (1, 1))):
        Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    frames = rng.integers(0, 255, (6, 20, 24, 3), dtype=np.uint8)
    (tmp_path / "clip.mp4").write_bytes(Clip(frames=frames, fps=4).encode())
    path = tmp_path / "mix.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Records.open(path)
