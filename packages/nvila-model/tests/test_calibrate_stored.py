"""Calibrating a model that stays on disk: equal to doing so in memory, one block at a time, stopped and resumed."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from nvila_kernels import Int4Linear
from nvila_kernels.calibrate import Fold, fold_
from nvila_model import NVILA, Image, ModelInputs
from nvila_model.checkpoint import CheckpointError
from nvila_model.checkpoint.layout import open_checkpoint
from nvila_model.network.vocabulary import StoredEmbedding, StoredHead
from nvila_model.quantization.blocks import quantize_model, usual_policy
from nvila_model.quantization.stored_blocks import StoredBlocks
from nvila_model.quantization.streaming import outline, quantize_checkpoint
from torch import nn

Calibration = Callable[[NVILA], Sequence[ModelInputs]]


def pictures(count: int) -> Calibration:
    """Conversations about noise."""

    def made(model: NVILA) -> list[ModelInputs]:
        random = np.random.default_rng(0)
        images = [Image(random.integers(0, 256, (40, 60 + index, 3), dtype=np.uint8)) for index in range(count)]
        return [model.needed_processor()([{"role": "user", "content": [image, "What is it?"]}]) for image in images]

    return made


@pytest.fixture
def stored(make_model: Callable[..., NVILA], tmp_path: Path) -> Path:
    make_model().save_pretrained(str(tmp_path / "float"))
    return tmp_path / "float"


def test_on_disk_as_in_memory(stored: Path, tmp_path: Path) -> None:
    quantize_checkpoint(stored, tmp_path / "disk", policy=usual_policy(vision=None), calibration=pictures(3))
    memory = NVILA.from_pretrained(str(stored))
    quantize_model(memory, vision=None, calibration=pictures(3)(memory))
    mine, theirs = memory.state_dict(), NVILA.from_pretrained(str(tmp_path / "disk"), optimize=False).state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_norms_of_16_bits_are_those_that_the_weights_were_scaled_by() -> None:
    """The fold counts in what writing will round away: the function stays the same in float32."""
    torch.manual_seed(0)
    norm, linear = nn.LayerNorm(32), nn.Linear(32, 8)
    nn.init.normal_(norm.weight)
    x = torch.randn(5, 32)
    expected = linear(norm(x))
    fold = Fold(source="0", targets=("1",))
    fold_(norm, [linear], torch.rand(32) + 0.5, fold.channels(32, 32), stored=torch.bfloat16)
    assert torch.equal(norm.weight, norm.weight.bfloat16().float())
    torch.testing.assert_close(linear(norm(x)), expected, rtol=0, atol=1e-5)


def test_one_block_is_held(stored: Path) -> None:
    found = open_checkpoint(stored)
    model = outline(found)
    blocks = StoredBlocks(model, "llm.layers", found.tensors, keep=False)
    for name, block in blocks.items():
        held = [other for other, parameter in model.named_parameters() if not parameter.is_meta]
        assert held
        assert all(other.startswith(f"{name}.") for other in held)
        assert model.get_submodule(name) is block
    assert len(blocks) == 2


class StopError(Exception):
    """Stands for a kill."""


def test_a_stopped_calibration_goes_on(stored: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == total:  # the last block
            raise StopError

    wanted = {"calibration": pictures(2), "shard_bytes": 10_000}
    with pytest.raises(StopError):
        quantize_checkpoint(stored, tmp_path / "stopped", step=stop, **wanted)
    (work,) = (path for path in tmp_path.iterdir() if path.name.endswith(".part"))
    finished = {file.relative_to(work): file.stat().st_mtime_ns for file in work.rglob("model*.safetensors")}
    assert len(finished) > 3
    assert not (work / "config.json").exists()
    lines = quantize_checkpoint(stored, tmp_path / "stopped", **wanted)
    for file, time in finished.items():
        assert (tmp_path / "stopped" / file).stat().st_mtime_ns == time
    assert lines == quantize_checkpoint(stored, tmp_path / "whole", **wanted)
    mine, theirs = (
        NVILA.from_pretrained(str(tmp_path / name), optimize=False).state_dict() for name in ("stopped", "whole")
    )
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_other_data_does_not_use_what_the_first_left(stored: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done == total:
            raise StopError

    with pytest.raises(StopError):
        quantize_checkpoint(stored, tmp_path / "a", calibration=pictures(1), step=stop, shard_bytes=10_000)
    quantize_checkpoint(stored, tmp_path / "a", calibration=pictures(2), shard_bytes=10_000)
    quantize_checkpoint(stored, tmp_path / "b", calibration=pictures(2), shard_bytes=10_000)
    loaded = (NVILA.from_pretrained(tmp_path / name, optimize=False) for name in ("a", "b"))
    mine, theirs = (model.state_dict() for model in loaded)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_pictures_are_needed_for_a_tower(stored: Path, tmp_path: Path) -> None:
    def text(model: NVILA) -> list[ModelInputs]:
        return [model.needed_processor()([{"role": "user", "content": "Hello"}])]

    with pytest.raises(CheckpointError, match="none of 1 calibration inputs has a picture"):
        quantize_checkpoint(stored, tmp_path / "new", calibration=text)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("tied", [True, False])
def test_a_vocabulary_can_stay_in_its_file(tied: bool, make_model: Callable[..., NVILA], tmp_path: Path) -> None:
    llm = {
        "model_type": "qwen2", "vocab_size": 259, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": tied,
    }  # fmt: skip
    model = make_model(llm=llm)
    quantize_model(model, vision=None)
    model.to(torch.bfloat16).save_pretrained(str(tmp_path / "m"))
    whole = NVILA.from_pretrained(str(tmp_path / "m"), optimize=False)
    mapped = NVILA.from_pretrained(str(tmp_path / "m"), stored_vocabulary=True, optimize=False)
    assert isinstance(mapped.llm.embed_tokens, StoredEmbedding)
    assert isinstance(mapped.llm.lm_head, StoredHead)
    assert mapped.llm.embed_tokens.weight.dtype == torch.bfloat16
    assert mapped.llm.dtype == torch.float32
    assert isinstance(mapped.llm.layers[0].mlp.up_proj, Int4Linear)
    inputs = whole.needed_processor()([{"role": "user", "content": "Hello"}])
    with torch.inference_mode():
        assert torch.equal(whole.embed(inputs).embeds, mapped.embed(inputs).embeds)
        expected, found = whole(inputs).logits, mapped(inputs).logits
    assert found.dtype == torch.float32
    assert float((found - expected).norm() / expected.norm()) < 0.01
