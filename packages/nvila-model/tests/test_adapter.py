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
