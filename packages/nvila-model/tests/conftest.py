"""A small model that needs nothing but this repository: drawn tokenizer, random weights."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from nvila_kernels.cpu.folder import FOLDER
from nvila_model import NVILA, NVILAConfig
from nvila_model.inputs.tokenizer import Tokenizer
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Backend

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer() -> Tokenizer:
    """Every byte is a token; special tokens follow."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Backend(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    backend.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    settings = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": TEMPLATE}
    return Tokenizer(backend, settings=settings)


def config(**changes: object) -> NVILAConfig:
    """A description of a small model; ``changes`` replace root fields."""
    return NVILAConfig.model_validate(
        {
            "llm": {
                "model_type": "qwen2", "vocab_size": 259, "hidden_size": 32, "intermediate_size": 48,
                "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
                "max_position_embeddings": 512, "tie_word_embeddings": True,
            },
            "vision": {
                "model_type": "siglip_vision_model", "hidden_size": 24, "intermediate_size": 40,
                "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 28, "patch_size": 7,
            },
            "projector": {"mm_projector_type": "mlp_downsample_2x2_fix"},
            "model_type": "llava_llama", "image_aspect_ratio": "dynamic_s2", "dynamic_s2": True,
            "s2_scales": "28,56,84", "num_video_frames": 4,
        }
        | changes
    )  # fmt: skip


@pytest.fixture
def make_model() -> Callable[..., NVILA]:
    """Make a small model with random weights; keyword arguments replace fields of its root configuration."""

    def make(**changes: object) -> NVILA:
        torch.manual_seed(0)
        model = NVILA.from_config(config(**changes), byte_tokenizer()).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        return model

    return make


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("measured")


@pytest.fixture(autouse=True)
def measurements_of_kernels(measured: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Timings of kernels are shared by the tests, and the user's own are neither read nor written."""
    monkeypatch.setenv(FOLDER, str(measured))
    return measured / "cpu.json"
