"""Quantized checkpoints: written, read, and taken from the formats of others."""

import json
from pathlib import Path

import pytest
import torch
from nvila_kernels import Int4Linear, Int8Linear
from nvila_kernels.formats import PackQuantized
from nvila_model import NVILA, Image, Sampling
from nvila_model.checkpoint import CheckpointError
from nvila_model.checkpoint.quantized import quantized_layers
from nvila_model.quantization.blocks import quantize_model
from PIL import Image as PILImage
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="module")
def small() -> NVILA:
    """nano, quantized to the nearest codes."""
    model = NVILA.from_pretrained("nano")
    quantize_model(model)
    return model


@pytest.fixture(scope="module")
def saved(small: NVILA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quantized")
    small.save_pretrained(str(folder))
    return folder


def question() -> list[dict]:
    noise = torch.randint(256, (90, 130, 3), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    return [{"role": "user", "content": [Image(PILImage.fromarray(noise.numpy())), "What is there?"]}]


def test_a_quantized_model_comes_back_bit_for_bit(small: NVILA, saved: Path) -> None:
    again = NVILA.from_pretrained(str(saved), optimize=False)
    assert {type(layer) for layer in quantized_layers(again).values()} == {Int4Linear, Int8Linear}
    mine, theirs = small.state_dict(), again.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    sampling = Sampling(max_new_tokens=8)
    assert again.generate(question(), sampling).ids == small.generate(question(), sampling).ids


def test_the_files_say_what_they_hold_and_save_again(saved: Path, tmp_path: Path) -> None:
    llm = json.loads((saved / "llm" / "config.json").read_text())["quantization_config"]
    vision = json.loads((saved / "vision_tower" / "config.json").read_text())["quantization_config"]
    assert (llm["quant_method"], llm["version"], llm["bits"]) == ("awq", "gemm", 4)
    assert (vision["quant_method"], vision["format"]) == ("compressed-tensors", "int-quantized")
    NVILA.from_pretrained(str(saved), optimize=False).save_pretrained(str(tmp_path / "again"))
    for part in ("llm", "vision_tower", "mm_projector"):
        one, other = (load_file(folder / part / "model.safetensors") for folder in (saved, tmp_path / "again"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert (saved / "llm" / "model.safetensors").stat().st_size < 0.6 * nano_bytes("llm")


def nano_bytes(part: str) -> int:
    from nvila_model.checkpoint.hub import NANO

    return (NANO / part / "model.safetensors").stat().st_size


def test_another_format_gives_the_same_layers(small: NVILA, saved: Path, tmp_path: Path) -> None:
    """The same codes, written as pack-quantized: what llm-compressor would leave."""
    folder = tmp_path / "packed"
    small.save_pretrained(str(folder))
    tensors = load_file(folder / "llm" / "model.safetensors")
    form = PackQuantized()
    for name, layer in quantized_layers(small).items():
        if name.startswith("llm."):
            stem = "model." + name.removeprefix("llm.")
            for key in ("qweight", "qzeros", "scales"):
                del tensors[f"{stem}.{key}"]
            tensors |= {f"{stem}.{key}": tensor for key, tensor in form.write(layer.codes()).items()}
    save_file(tensors, folder / "llm" / "model.safetensors")
    config = json.loads((folder / "llm" / "config.json").read_text())
    config["quantization_config"] = form.config(skipped=("lm_head",))
    (folder / "llm" / "config.json").write_text(json.dumps(config))
    mine, theirs = small.llm.state_dict(), NVILA.from_pretrained(str(folder), optimize=False).llm.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def broken(saved: Path, folder: Path, change: dict[str, torch.Tensor | None]) -> str:
    """A copy of the checkpoint with tensors of the language model changed or left out."""
    import shutil

    shutil.copytree(saved, folder)
    file = folder / "llm" / "model.safetensors"
    tensors = {**load_file(file), **change}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, file)
    return str(folder)


def test_a_checkpoint_that_is_not_whole_is_refused(saved: Path, tmp_path: Path) -> None:
    name = "model.layers.0.mlp.up_proj"
    with pytest.raises(CheckpointError, match=r"up_proj\.scales is missing"):
        NVILA.from_pretrained(broken(saved, tmp_path / "a", {f"{name}.scales": None}), optimize=False)
    with pytest.raises(CheckpointError, match=r"up_proj.*not whole"):
        NVILA.from_pretrained(broken(saved, tmp_path / "b", {f"{name}.scales": torch.ones(7, 8)}), optimize=False)


def test_an_unknown_method_is_named(saved: Path, tmp_path: Path) -> None:
    folder = broken(saved, tmp_path / "c", {})
    file = tmp_path / "c" / "llm" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "quantization_config": {"quant_method": "hqq"}}))
    with pytest.raises(CheckpointError, match="llm part: quant_method 'hqq' is not supported"):
        NVILA.from_pretrained(folder, optimize=False)
