"""Save, load, same answer: or one sentence and no folder. Copies, other processes, what an optimized model refuses."""

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from nvila_compress import Compressor, SpatialToChannel
from nvila_kernels import Int4Linear
from nvila_model import NVILA, CheckpointError, Sampling, export
from nvila_model.checkpoint import quantized_layers
from nvila_model.quantization import quantize_model
from nvila_tiling import SingleTile
from safetensors.torch import load_file
from torch import nn
from torch.multiprocessing import get_context

QUESTION = [{"role": "user", "content": "What is there?"}]
WIDE = {
    "model_type": "qwen2", "vocab_size": 259, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2,
}  # fmt: skip


@pytest.fixture
def quantized(make_model: Callable[..., NVILA]) -> NVILA:
    model = make_model(llm=WIDE)
    quantize_model(model)
    return model


@pytest.fixture
def stored(quantized: NVILA, tmp_path: Path) -> Path:
    quantized.save_pretrained(tmp_path / "stored")
    return tmp_path / "stored"


def answer(model: NVILA) -> tuple[int, ...]:
    return model.generate(QUESTION, max_new_tokens=6).ids


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{file.parent.relative_to(folder)}/{name}": tensor
        for file in folder.rglob("*.safetensors")
        for name, tensor in load_file(file).items()
    }


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_quantized_model_is_optimized_when_it_is_loaded(stored: Path, quantized: NVILA) -> None:
    model = NVILA.from_pretrained(stored)
    assert model.optimized
    assert not quantized_layers(model)
    as_stored = NVILA.from_pretrained(stored, optimize=False)
    assert not as_stored.optimized
    assert isinstance(as_stored.llm.layers[0].mlp.up_proj, Int4Linear)
    assert answer(as_stored) == answer(quantized)
    assert as_stored.optimize()
    assert answer(model) == answer(as_stored)
    with pytest.raises(ValueError, match="optimized already: load it again with optimize=False"):
        model.optimize()


def test_floats_have_nothing_to_optimize(make_model: Callable[..., NVILA]) -> None:
    model = make_model()
    assert model.optimize() == ()
    assert model.train().training


def test_an_optimized_model_saves_what_it_was_loaded_from(stored: Path, tmp_path: Path) -> None:
    model = NVILA.from_pretrained(stored)
    model.save_pretrained(tmp_path / "again")
    assert same(tensors(stored), tensors(tmp_path / "again"))
    part = Path("llm") / "config.json"
    assert json.loads((stored / part).read_text()) == json.loads((tmp_path / "again" / part).read_text())
    export(model, tmp_path / "hf", layout="hf")
    assert answer(NVILA.from_pretrained(tmp_path / "hf")) == answer(model)


def test_an_optimized_model_without_a_source_is_refused(quantized: NVILA, tmp_path: Path) -> None:
    quantized.optimize()
    for layout in ("original", "hf"):
        with pytest.raises(CheckpointError, match=r"cannot be saved.*load it with optimize=False"):
            export(quantized, tmp_path / "out", layout=layout)
    with pytest.raises(CheckpointError, match="optimize=False"):
        quantized.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("layout", ["original", "hf"])
def test_quantized_layers_are_exported(quantized: NVILA, stored: Path, tmp_path: Path, layout: str) -> None:
    """From the model and from its folder: the same files, and the same answers."""
    export(quantized, tmp_path / "a", layout=layout)
    export(stored, tmp_path / "b", layout=layout)
    assert {file.relative_to(tmp_path / "a") for file in (tmp_path / "a").rglob("*")} == {
        file.relative_to(tmp_path / "b") for file in (tmp_path / "b").rglob("*")
    }
    assert same(tensors(tmp_path / "a"), tensors(tmp_path / "b"))
    again = NVILA.from_pretrained(tmp_path / "a", optimize=False)
    assert quantized_layers(again).keys() == quantized_layers(quantized).keys()
    assert answer(again) == answer(quantized)
    export(tmp_path / "a", tmp_path / "back")
    assert same(tensors(tmp_path / "back"), tensors(stored))


def test_an_unknown_layout_is_refused(stored: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="layout 'gguf' is not known: use 'original' or 'hf'"):
        export(stored, tmp_path / "out", layout="gguf")


class Halved(SpatialToChannel):
    """Another way of folding, of the same shapes."""

    def forward(self, tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        return super().forward(tokens, grid) / 2


def with_compressor(model: NVILA) -> None:
    model.compressor = Halved(2)


def with_tiler(model: NVILA) -> None:
    model.tiler = SingleTile(tile=28)


def with_tower(model: NVILA) -> None:
    class Tower(nn.Module):
        patch_size = 14

    model.vision = Tower()


def with_longer_rotation(model: NVILA) -> None:
    model.llm.rope_theta = 10.0


def with_another_layer(model: NVILA) -> None:
    model.llm.layers.append(copy.deepcopy(model.llm.layers[0]))


def with_adapter(model: NVILA) -> None:
    layer = model.llm.layers[0].mlp
    layer.up_proj = nn.Sequential(layer.up_proj)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (with_compressor, "the compressor of this model, Halved.*is not the one that its config describes, Spatial"),
        (with_tiler, "the tiler of this model, SingleTile"),
        (with_tower, "the vision of this model, Tower"),
        (with_longer_rotation, "the llm of this model, Qwen2.*rope_theta=10.0"),
        (with_another_layer, "has 12 tensors too many"),
        (with_adapter, "lacks 1 of"),
    ],
)
@pytest.mark.parametrize("layout", ["original", "hf"])
def test_what_would_come_back_otherwise_is_refused(
    make_model: Callable[..., NVILA], change: Callable, said: str, layout: str, tmp_path: Path
) -> None:
    model = make_model()
    change(model)
    with pytest.raises(CheckpointError, match=said):
        export(model, tmp_path / "out", layout=layout)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["float", "quantized"])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda each: pickle.loads(pickle.dumps(each))])
def test_copies_answer_alike(make_model: Callable[..., NVILA], quantized: NVILA, kind: str, copied: Callable) -> None:
    model = quantized if kind == "quantized" else make_model()
    assert answer(copied(model)) == answer(model)
    processor = copied(model.processor)
    assert processor(QUESTION).prompt_text == model.processor(QUESTION).prompt_text


def test_another_process_answers_alike(make_model: Callable[..., NVILA]) -> None:
    model = make_model()
    with get_context("spawn").Pool(1) as pool:
        assert pool.apply(model.generate, (QUESTION, Sampling(max_new_tokens=6))).ids == answer(model)


@pytest.mark.parametrize("change", [NVILA.train, NVILA.half, lambda model: model.to("meta"), pickle.dumps])
def test_an_optimized_model_only_answers(stored: Path, change: Callable) -> None:
    model = NVILA.from_pretrained(stored)
    with pytest.raises(ValueError, match="optimize=False"):
        change(model)
    assert model.eval().to("cpu") is model
    assert answer(copy.deepcopy(model)) == answer(model)


def test_options_by_keyword(make_model: Callable[..., NVILA]) -> None:
    model = make_model()
    sampling = Sampling(max_new_tokens=5, temperature=0.9, seed=3)
    wanted = model.generate(QUESTION, sampling)
    assert model.generate(QUESTION, max_new_tokens=5, temperature=0.9, seed=3).ids == wanted.ids
    assert model.generate(QUESTION, Sampling(temperature=0.9, seed=3), max_new_tokens=5).ids == wanted.ids
    assert "".join(model.stream(QUESTION, max_new_tokens=5, temperature=0.9, seed=3, stop=["\0"])) == wanted.text
    with pytest.raises(TypeError, match="do_sample is no option of an answer: use max_new_tokens, temperature"):
        model.generate(QUESTION, do_sample=True)
    with pytest.raises(ValueError, match="top_p is 2"):
        model.stream(QUESTION, top_p=2)


def test_a_chat_remembers(make_model: Callable[..., NVILA]) -> None:
    model = make_model()
    chat = model.chat(max_new_tokens=4)
    first = chat.ask("Who are you?")
    assert [turn["role"] for turn in chat.messages] == ["user", "assistant"]
    wanted = model.generate([*chat.messages, {"role": "user", "content": ["Why?"]}], max_new_tokens=7)
    assert "".join(chat.stream("Why?", max_new_tokens=7)) == wanted.text
    assert [turn["content"] for turn in chat.messages[1::2]] == [first.text, wanted.text]
    with pytest.raises(ValueError, match="lower max_tiles"):
        chat.ask("long " * 5000)
    assert len(chat.messages) == 4


def test_the_compressor_of_a_checkpoint_is_the_one_it_says(make_model: Callable[..., NVILA], tmp_path: Path) -> None:
    model = make_model()
    assert isinstance(model.compressor, Compressor)
    model.save_pretrained(tmp_path / "m")
    assert type(NVILA.from_pretrained(tmp_path / "m").compressor) is type(model.compressor)
