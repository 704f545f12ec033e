"""Adapters in PEFT's layout, added by hand-computed sums; every fault in one sentence."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nvila_model import NVILA
from nvila_model.checkpoint.adapter import add_adapter
from nvila_model.checkpoint.tensor_folder import CheckpointError
from nvila_model.quantization.blocks import quantize_model
from safetensors.torch import save_file
from torch import Tensor

LAYER = "llm.layers.0.self_attn.q_proj"
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "bias": "none"}


def write(folder: Path, tensors: dict[str, Tensor], **changes: Any) -> Path:
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | changes))
    save_file(
        {f"base_model.model.{name}": value for name, value in tensors.items()}, folder / "adapter_model.safetensors"
    )
    return folder


def pair(rank: int = 2) -> dict[str, Tensor]:
    a, b = torch.randn(rank, 32), torch.randn(32, rank)
    return {f"{LAYER}.lora_A.weight": a, f"{LAYER}.lora_B.weight": b}


@pytest.mark.parametrize(
    ("changes", "scale"),
    [
        ({}, 4.0),
        ({"use_rslora": True}, 8 / 2**0.5),
        ({"r": 64, "rank_pattern": {"q_proj": 2}}, 4.0),
        ({"alpha_pattern": {"layers.0.self_attn.q_proj": 2, "q_proj": 5}}, 1.0),
    ],
)
def test_the_product_is_added(
    make_model: Callable[..., NVILA], tmp_path: Path, changes: dict[str, Any], scale: float
) -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tensors = pair()
    add_adapter(model, write(tmp_path, tensors, **changes))
    after = model.state_dict()
    true = before[f"{LAYER}.weight"] + scale * tensors[f"{LAYER}.lora_B.weight"] @ tensors[f"{LAYER}.lora_A.weight"]
    torch.testing.assert_close(after[f"{LAYER}.weight"], true)
    assert all(torch.equal(value, after[name]) for name, value in before.items() if name != f"{LAYER}.weight")


def test_a_whole_module_takes_the_place_of_the_old_one(make_model: Callable[..., NVILA], tmp_path: Path) -> None:
    model = make_model()
    new = torch.randn(32)
    add_adapter(model, write(tmp_path, {"llm.norm.weight": new}, modules_to_save=["llm.norm"]))
    assert torch.equal(model.llm.norm.weight, new)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"llm.nothing.weight": torch.ones(2)}, "changes 'llm.nothing.weight', and there is no such weight"),
        ({"llm.norm.weight": torch.ones(3)}, r"'llm.norm.weight' has shape \[3\], the model's \[32\]"),
        ({f"{LAYER}.lora_A.weight": torch.ones(2, 32)}, "without its lora_B: the adapter is not whole"),
        ({f"{LAYER}.lora_B.weight": torch.ones(32, 2)}, "without its lora_A: the adapter is not whole"),
        ({}, "holds no tensors, so it changes nothing"),
        (
            {f"{LAYER}.lora_A.weight": torch.ones(0, 32), f"{LAYER}.lora_B.weight": torch.ones(32, 0)},
            "has no rank: expected two axes of at least 1",
        ),
        ({"llm.norm.weight": torch.full((32,), torch.nan)}, "'llm.norm.weight' holds NaN or infinity"),
        ({"llm.embed_tokens.lora_embedding_A": torch.ones(2, 5)}, "an adapter of an embedding: merge it with peft"),
        (pair(3), r"says rank 2 for '.*q_proj', its tensors have 3: the scale alpha / rank would be wrong"),
        (
            {f"{LAYER}.lora_A.weight": torch.ones(2, 31), f"{LAYER}.lora_B.weight": torch.ones(32, 2)},
            r"q_proj' has shape \[32, 31\], the model's \[32, 32\]",
        ),
    ],
)
def test_what_does_not_fit(
    make_model: Callable[..., NVILA], tmp_path: Path, tensors: dict[str, Tensor], said: str
) -> None:
    with pytest.raises(CheckpointError, match=said):
        add_adapter(make_model(), write(tmp_path, tensors))


def test_a_quantized_layer_takes_none(make_model: Callable[..., NVILA], tmp_path: Path) -> None:
    model = make_model()
    quantize_model(model, vision=None, group_size=0)
    with pytest.raises(CheckpointError, match="its layer is quantized: add the adapter to the float checkpoint"):
        add_adapter(model, write(tmp_path, pair()))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target_modules": ["q_proj", "v_proj"]}, "names 'v_proj' in target_modules, and .* holds nothing for it"),
        ({"target_modules": r".*\.o_proj"}, r"names '.*o_proj' in target_modules, and .* holds nothing for it"),
        ({"modules_to_save": ["llm.norm"]}, "names 'llm.norm' in modules_to_save, and .* holds nothing for it"),
        ({"target_modules": [3]}, "target_modules holds 3: expected names of layers"),
        ({"r": None}, "r for '.*' is None: expected a number above 0"),
        ({"r": "2"}, "r for '.*' is '2': expected a number above 0"),
        ({"r": 0}, "r for '.*' is 0: expected a number above 0"),
        ({"lora_alpha": None}, "lora_alpha for '.*' is None: expected a number above 0"),
        ({"lora_alpha": 0}, "lora_alpha for '.*' is 0: expected a number above 0"),
    ],
)
def test_an_adapter_that_is_not_what_it_says(
    make_model: Callable[..., NVILA], tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(CheckpointError, match=said):
        add_adapter(make_model(), write(tmp_path, pair(), **changes))


def test_targets_that_are_met(make_model: Callable[..., NVILA], tmp_path: Path) -> None:
    for number, target in enumerate((["q_proj"], r".*self_attn\.q_proj", "all-linear", [LAYER])):
        folder = tmp_path / str(number)
        folder.mkdir()
        add_adapter(make_model(), write(folder, pair(), target_modules=target))


def test_published_names(make_model: Callable[..., NVILA], tmp_path: Path) -> None:
    """As ``peft`` names them on the reference's modules: the tower's keys are rows of one product here."""
    model = make_model()
    (width,) = {weight.shape[1] for name, weight in model.named_parameters() if name.endswith("attn.qkv.weight")}
    (fused,) = (name for name, _ in model.named_parameters() if name.endswith("blocks.0.attn.qkv.weight"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    a, b = torch.randn(2, width), torch.randn(width, 2)
    query, key = "llm.model.layers.0.self_attn.q_proj", "vision_model.encoder.layers.0.self_attn.k_proj"
    tensors = {f"vision_tower.vision_tower.{key}.lora_A.weight": a, f"vision_tower.vision_tower.{key}.lora_B.weight": b}
    tensors |= {name.replace(LAYER, query): value for name, value in pair().items()}
    tensors["mm_projector.layers.1.weight"] = torch.randn_like(before["projector.layers.1.weight"])
    add_adapter(model, write(tmp_path, tensors, target_modules=["q_proj", "k_proj"]))
    after = model.state_dict()
    true = before[fused].clone()
    true[width : 2 * width] += 4 * b @ a
    torch.testing.assert_close(after[fused], true)
    assert torch.equal(after["projector.layers.1.weight"], tensors["mm_projector.layers.1.weight"])
    assert not torch.equal(after[f"{LAYER}.weight"], before[f"{LAYER}.weight"])
