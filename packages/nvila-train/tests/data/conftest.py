"""Records with their pictures, and a small model with random weights."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from nvila_model import NVILA, NVILAConfig
from nvila_model.inputs import Tokenizer
from nvila_train.trainee import Trainee
from PIL import Image
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

CONFIG = {
    "llm": {
        "model_type": "qwen2", "vocab_size": 258, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": True,
    },
    "vision": {
        "model_type": "siglip_vision_model", "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 2, "image_size": 28, "patch_size": 7,
    },
    "projector": {"mm_projector_type": "mlp_downsample_2x2_fix"},
    "model_type": "llava_llama", "image_aspect_ratio": "dynamic_s2", "dynamic_s2": True, "s2_scales": "28,56,84",
    "num_video_frames": 2,
}  # fmt: skip


def talk(*values: str, **media: Any) -> dict[str, Any]:
    """A record of questions and answers by turns."""
    turns = [{"from": ("human", "gpt")[place % 2], "value": value} for place, value in enumerate(values)]
    return {"conversations": turns, **media}


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three pictures of odd shapes, a file that is no picture, and one that is cut short."""
    folder = tmp_path_factory.mktemp("pictures")
    for name, size in (("wide.png", (100, 10)), ("tiny.png", (7, 5)), ("plain.png", (56, 60))):
        Image.effect_mandelbrot(size, (-2, -1.5, 1, 1.5), 20).convert("RGB").save(folder / name)
    (folder / "note.png").write_text("not a picture")
    (folder / "cut.png").write_bytes((folder / "plain.png").read_bytes()[:200])
    return folder


@pytest.fixture
def records() -> list[dict[str, Any]]:
    """One picture, several, turns, text alone, a clip: what a LLaVA file may hold."""
    return [
        talk("<image>\nWhat?", "A fractal.", image="wide.png"),
        talk("Compare <image> and <image>.", "Alike.", "Sure?", "Yes, très sûr.", images=["tiny.png", "plain.png"]),
        talk("Hi", "Ho"),
        talk("Where is it?\n<image>", "Nowhere.", image=["tiny.png"]),
        talk("Say a long thing.", "long " * 12),
        talk("And this?", "No placeholder.", image="plain.png"),
    ]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write records as JSONL."""

    def written(records: Sequence[Any], name: str = "train.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
        return path

    return written


@pytest.fixture
def numbered(write: Callable[..., Path]) -> Callable[..., Path]:
    """Write a file of so many text conversations, whose answers are their rows."""

    def made(count: int, name: str = "train.jsonl") -> Path:
        return write([talk("Which?", f"{name} {row}") for row in range(count)], name)

    return made


@pytest.fixture(scope="session")
def trainee() -> Trainee:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    torch.manual_seed(0)
    model = NVILA.from_config(
        NVILAConfig.model_validate(CONFIG), Tokenizer(backend, settings={"eos_token": "<|im_end|>"})
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return Trainee(model)
