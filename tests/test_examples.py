"""Every program in ``examples/`` runs."""

import runpy
import sys
from pathlib import Path

import pytest
import torch
from nvila_model import NVILA, NVILAConfig
from nvila_model.checkpoint.hub import NANO
from nvila_model.inputs.tokenizer import Tokenizer
from PIL import Image
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, pre_tokenizers

EXAMPLES = Path(__file__).parent.parent / "examples"
DRAWING = {"draw_examples.py"}
"""Makes the pictures; has a test of its own."""

PROGRAMS = sorted(path.name for path in EXAMPLES.glob("*.py") if path.name not in DRAWING)

CONFIG = {
    "llm": {
        "model_type": "qwen2", "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
    "vision": {
        "model_type": "siglip_vision_model",
        "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2,
        "image_size": 28, "patch_size": 7,
    },
    "projector": {"mm_projector_type": "mlp_downsample_2x2_fix"},
    "model_type": "llava_llama", "image_aspect_ratio": "dynamic_s2", "dynamic_s2": True, "s2_scales": "28,56,84",
}  # fmt: skip


def tiny_host(name: str, folder: Path) -> str:
    """A tiny random model of transformers with its processor, saved."""
    sys.path.insert(0, str(EXAMPLES.parent / "packages" / "nvila-compress" / "tests" / "adapters"))
    import tiny_hosts

    case = tiny_hosts.make(name)
    case.model.save_pretrained(folder / name)
    case.processor.save_pretrained(folder / name)
    return str(folder / name)


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What each program is given where nano and the drawn pictures are not there: a random model and a picture."""
    folder = tmp_path_factory.mktemp("examples")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    torch.manual_seed(0)
    model = NVILA.from_config(
        NVILAConfig.model_validate(CONFIG), Tokenizer(backend, settings={"eos_token": "<|im_end|>"})
    )
    model.save_pretrained(str(folder / "model"))
    Image.effect_mandelbrot((120, 80), (-2, -1.5, 1, 1.5), 20).convert("RGB").save(folder / "picture.png")
    picture, name = str(folder / "picture.png"), str(folder / "model")
    return {
        "ask_image.py": [picture, "What is this?", name],
        "stream_answer.py": [picture, "What is this?", name],
        "ask_batch.py": [name],
        "stage_by_stage.py": [picture, name],
        "smolvlm_stc.py": [tiny_host("smolvlm", folder), picture],
        "onevision_video.py": [tiny_host("llava_onevision", folder), str(EXAMPLES / "motion.mp4")],
    }


def run(program: str, *words: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "argv", [program, *words])
    runpy.run_path(str(EXAMPLES / program), run_name="__main__")
    return capsys.readouterr().out


@pytest.mark.parametrize("program", PROGRAMS)
def test_runs(
    program: str,
    arguments: dict[str, list[str]],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert run(program, *arguments.get(program, []), capsys=capsys, monkeypatch=monkeypatch)  # a blank answer is one


@pytest.mark.parametrize("program", ["ask_image.py", "stream_answer.py", "ask_batch.py", "stage_by_stage.py"])
def test_runs_as_its_head_says(
    program: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (NANO / "config.json").is_file() or not (EXAMPLES / "receipt.png").is_file():
        pytest.skip("nano or the drawn pictures are not in this checkout")
    assert run(program, capsys=capsys, monkeypatch=monkeypatch).strip()
