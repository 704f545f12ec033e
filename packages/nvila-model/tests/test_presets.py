"""The published family: dimensions, parameter counts, tokens, memory."""

import pytest
import torch
from nvila_model import NVILA, NVILAConfig
from nvila_model.estimate import (
    INT4,
    TokenCount,
    count_tokens,
    estimate_memory,
    parameters,
)
from nvila_model.presets import PresetError, list_models, preset, repository

# Parameters of Qwen/Qwen2.5-1.5B, Qwen/Qwen2-7B and Qwen/Qwen2.5-14B as published, with their rows of vocabulary.
QWEN = {1536: (1_543_714_304, 151936), 3584: (7_615_616_512, 152064), 5120: (14_770_033_664, 152064)}

# google/siglip-so400m-patch14-384's vision model: with pooling head and 729 positions.
SIGLIP = 428_225_600


def siglip_as_nvila_reads_it() -> int:
    """The published tower with 1024 positions, without pooling head, final norm and the last of 27 layers."""
    width, hidden = 1152, 4304
    attention = 4 * (width * width + width)
    mlp = 2 * width * hidden + hidden + width
    norm = 2 * width
    head = width + attention + norm + mlp
    layer = attention + mlp + 2 * norm
    return SIGLIP + (1024 - 729) * width - head - norm - layer


@pytest.fixture(scope="module", params=list_models())
def model(request: pytest.FixtureRequest) -> NVILA:
    return NVILA.outline(preset(request.param))


def test_the_family_is_there() -> None:
    assert list_models() == (
        "NVILA-Lite-2B",
        "NVILA-8B",
        "NVILA-8B-Video",
        "NVILA-Lite-8B",
        "NVILA-15B",
        "NVILA-Lite-15B",
    )
    assert repository("NVILA-8B") == "Efficient-Large-Model/NVILA-8B"


def test_built_without_memory(model: NVILA) -> None:
    assert all(parameter.device.type == "meta" for parameter in model.parameters())


def test_language_model_has_the_published_size(model: NVILA) -> None:
    config = model.config.llm
    total, rows = QWEN[config.hidden_size]
    tables = 1 if config.tie_word_embeddings else 2
    assert parameters(model.llm) == total + tables * (config.vocab_size - rows) * config.hidden_size


def test_vision_tower_has_the_published_size(model: NVILA) -> None:
    assert parameters(model.vision) == siglip_as_nvila_reads_it()


def test_total_is_what_the_name_says(model: NVILA) -> None:
    name = model.config.model_extra["_name_or_path"]
    billions = {"2B": 2.0, "8B": 8.1, "15B": 15.3}
    expected = next(value for size, value in billions.items() if f"-{size}" in name)
    assert parameters(model) / 1e9 == pytest.approx(expected, rel=0.02)


def test_projector_input_is_the_published_one() -> None:
    assert NVILA.outline(preset("NVILA-8B")).projector.layers[0].normalized_shape == (3456 * 4,)
    assert NVILA.outline(preset("NVILA-Lite-2B")).projector.layers[0].normalized_shape == (1152 * 9,)


def test_description_survives_writing_and_reading() -> None:
    for name in list_models():
        config = preset(name)
        parts = {part: getattr(config, part).to_dict() for part in ("llm", "vision", "projector")}
        again = NVILAConfig.model_validate({**config.root_dict(), **parts})
        assert again == config


def test_unknown_preset() -> None:
    with pytest.raises(PresetError, match="no preset 'NVILA-3B': choose one of NVILA-Lite-2B"):
        preset("NVILA-3B")


@pytest.mark.parametrize(
    ("name", "size", "tokens"),
    [
        ("NVILA-8B", (1344, 1344), 9 * 256 + 1),  # 9 to 12 tiles of 256 tokens, PAPER's Table 1, and a newline
        ("NVILA-8B", (1344, 896), 12 * 256 + 1),
        ("NVILA-Lite-8B", (448, 448), 121 + 2),  # 121 tokens a tile, and a newline of the encoder and of the prompt
        ("NVILA-Lite-8B", (1344, 896), 7 * 123),  # 3 x 2 tiles and a thumbnail
        ("NVILA-8B-Video", (1344, 896), 256 + 1),
    ],
)
def test_tokens_of_an_image(name: str, size: tuple[int, int], tokens: int) -> None:
    assert count_tokens(name, images=[size]).images == (tokens,)


@pytest.mark.parametrize(
    ("name", "frames", "tokens"),
    [("NVILA-8B", 8, 8 * 257), ("NVILA-Lite-8B", 8, 8 * 122), ("NVILA-8B-Video", 256, 32 * 257)],
)
def test_tokens_of_a_video(name: str, frames: int, tokens: int) -> None:
    assert count_tokens(name, videos=[frames]).videos == (tokens,)


def test_several_images_share_the_budget_of_tiles() -> None:
    one = count_tokens("NVILA-Lite-2B", images=[(4000, 3000)]).total
    eight = count_tokens("NVILA-Lite-2B", images=[(4000, 3000)] * 8, text=5)
    assert len(set(eight.images)) == 1
    assert eight.images[0] < one
    assert eight.total == sum(eight.images) + 5


def test_totals() -> None:
    assert TokenCount(images=(3, 4), videos=(5,), text=6).total == 18


def test_memory_of_weights_is_that_of_the_parameters(model: NVILA) -> None:
    memory = estimate_memory(model, weights="bfloat16")
    assert memory.weights == 2 * parameters(model)
    assert estimate_memory(model, weights="float32").weights == 4 * parameters(model)
    with pytest.raises(ValueError, match="weights 'int3' are not known: choose one of float32"):
        estimate_memory(model, weights="int3")
    assert memory.total == memory.weights + memory.cache + memory.activations


def test_memory_of_4_bit_weights() -> None:
    model = NVILA.outline(preset("NVILA-Lite-2B"))
    matrices = 28 * (2 * 1536 * 1536 + 2 * 1536 * 256 + 3 * 1536 * 8960)
    rest = parameters(model.llm) - matrices
    assert estimate_memory(model, weights="w4a16").llm == round(matrices * INT4) + 2 * rest
    assert estimate_memory(model, weights="w8a8+w4a16").vision < estimate_memory(model, weights="w4a16").vision


def test_memory_of_the_cache_is_what_the_cache_takes() -> None:
    model = NVILA.outline(preset("NVILA-Lite-2B"))
    with torch.device("meta"):
        cache = model.llm.bfloat16().cache(2, 300)
    held = cache.keys.nbytes + cache.values.nbytes
    assert estimate_memory(model, tokens=300, batch=2).cache == held
