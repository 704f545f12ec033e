"""A beginning checkpoint from stand-ins that ``transformers`` wrote, against ``transformers``' own answers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from nvila_model import NVILA
from nvila_model.checkpoint import NANO, PARTS, CheckpointError
from nvila_model.network import VisionTower
from nvila_train.cli.app import app
from nvila_train.compose import begin_with, resampled
from nvila_train.model_size import description
from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel
from typer.testing import CliRunner

CONFIG = description("nano")
PATCHES = CONFIG.vision.image_size // CONFIG.vision.patch_size


def language(folder: Path, **changes: Any) -> Qwen2ForCausalLM:
    """A Qwen2 of nano's size with rows to spare, and nano's tokenizer without its media tokens' rows."""
    llm = CONFIG.llm
    torch.manual_seed(1)
    sizes = {name: getattr(llm, name) for name in (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "rope_theta", "rms_norm_eps")}  # fmt: skip
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=llm.vocab_size + 40, tie_word_embeddings=False, **sizes | changes))
    model.save_pretrained(folder)
    for path in (NANO / PARTS["llm"]).glob("*token*"):
        (folder / path.name).write_bytes(path.read_bytes())
    return model.eval()


def tower(folder: Path, *, size: int = CONFIG.vision.image_size) -> SiglipVisionModel:
    vision = CONFIG.vision
    torch.manual_seed(2)
    sizes = {name: getattr(vision, name) for name in (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size")}  # fmt: skip
    config = SiglipVisionConfig(image_size=size, vision_use_head=False, **sizes)
    model = SiglipVisionModel(config)
    model.save_pretrained(folder)
    return model.eval()


def test_two_parts_become_one_checkpoint(tmp_path: Path):
    llm, vision = language(tmp_path / "llm"), tower(tmp_path / "vision")
    words = ["begin", "nano", "--llm", str(tmp_path / "llm"), "--vision", str(tmp_path / "vision"),
             "--out", str(tmp_path / "out")]  # fmt: skip
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    model = NVILA.from_pretrained(str(tmp_path / "out"))
    assert model.config is not None
    assert not model.config.llm.tie_word_embeddings
    rows = model.llm.vocab_size
    assert rows == len(model.needed_processor().tokenizer)
    ids = torch.tensor([[5, 9, 300, 2]])
    tiles = torch.randn(2, 3, CONFIG.vision.image_size, CONFIG.vision.image_size)
    with torch.no_grad():
        mine = model.llm.logits(model.llm(model.llm.embed_tokens(ids)))
        torch.testing.assert_close(mine, llm(ids).logits[..., :rows], atol=2e-2, rtol=2e-2)  # saved in 16 bits
        layer = CONFIG.mm_vision_select_layer
        theirs = vision(tiles, output_hidden_states=True).hidden_states[layer]
        torch.testing.assert_close(model.vision(tiles), theirs, atol=2e-2, rtol=2e-2)
    assert "exists: remove it" in str(CliRunner().invoke(app, words).exception)


def test_positions_of_another_size_are_resampled(tmp_path: Path):
    language(tmp_path / "llm")
    tower(tmp_path / "vision", size=(PATCHES + 3) * CONFIG.vision.patch_size)
    model = begin_with(CONFIG, llm=str(tmp_path / "llm"), vision=str(tmp_path / "vision"))
    assert isinstance(model.vision, VisionTower)
    assert model.vision.position_embedding.shape[0] == PATCHES**2
    flat = torch.full((9, 4), 2.5)
    torch.testing.assert_close(resampled(flat, 5), torch.full((25, 4), 2.5))
    ramp = torch.arange(6.0)[None, :].expand(6, 6).reshape(36, 1)
    middle = resampled(ramp, 12).reshape(12, 12)[6]
    torch.testing.assert_close(middle[4:8], torch.tensor([1.75, 2.25, 2.75, 3.25]), atol=0.05, rtol=0)


def test_a_tower_of_open_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    language(tmp_path / "llm")
    vision = CONFIG.vision
    made = VisionTower.siglip(
        image_size=vision.image_size, patch_size=vision.patch_size, width=vision.hidden_size,
        layers=vision.num_hidden_layers, heads=vision.num_attention_heads, mlp_width=vision.intermediate_size,
        select_layer=-1,
    )  # fmt: skip
    asked: list[Any] = []
    monkeypatch.setattr(VisionTower, "from_open_clip", lambda *given, **options: asked.append((given, options)) or made)
    model = begin_with(CONFIG, llm=str(tmp_path / "llm"), vision="open-clip:ViT-SO400M-14-SigLIP-384:webli")
    assert asked == [(("ViT-SO400M-14-SigLIP-384",), {"pretrained": "webli", "select_layer": -1})]
    assert isinstance(model.vision, VisionTower)
    first = model.vision.blocks[0].mlp.fc1.weight
    torch.testing.assert_close(first.float(), made.blocks[0].mlp.fc1.weight, atol=1e-2, rtol=1e-2)


def test_parts_of_another_size_are_refused(tmp_path: Path):
    language(tmp_path / "llm", hidden_size=64)
    tower(tmp_path / "vision")
    said = f"has hidden_size 64, the model needs {CONFIG.llm.hidden_size}: give the part of its size"
    with pytest.raises(CheckpointError, match=said):
        begin_with(CONFIG, llm=str(tmp_path / "llm"), vision=str(tmp_path / "vision"))
