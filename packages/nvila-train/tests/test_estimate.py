"""What a step is said to take against what torch's allocator hands out in a real one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nvila_model import NVILA, NVILAConfig
from nvila_train.cli.app import app
from nvila_train.cli.estimate import card_bytes, size
from nvila_train.estimate.live_bytes import Live
from nvila_train.estimate.recipe_step import read
from nvila_train.estimate.step import Cost, Load, estimate_step, filled, step_loss
from nvila_train.model_size import description
from nvila_train.recipe_errors import RecipeError
from nvila_train.trainer.blocks import prepared
from nvila_train.tuning import tune
from nvila_train.tuning.nf4 import is_packed, packed_bytes
from torch import nn
from torch.profiler import ProfilerActivity, profile
from typer.testing import CliRunner

LOAD = Load(samples=2, image=(256, 192), text=64, answer=16)


def allocated(run: Any, folder: Path) -> int:
    """The most bytes that were handed out by torch's CPU allocator and not given back, while this ran."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    profiler.export_chrome_trace(str(folder / "trace.json"))
    events = [
        event for event in json.loads((folder / "trace.json").read_text())["traceEvents"] if event["name"] == "[memory]"
    ]
    now = most = 0
    for event in sorted(events, key=lambda event: event["ts"]):
        now += event["args"]["Bytes"]
        most = max(most, now)
    return most


def measured(model: NVILA, load: Load, folder: Path) -> int:
    """Peak of a real step: weights and AdamW's states, which are there before, and what is handed out in it."""
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return 3 * weights + allocated(lambda: step_loss(model.train(), load)[0].backward(), folder)


def real(config: NVILAConfig) -> NVILA:
    model = filled(NVILA.outline(config), torch.float32)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return model


def near(cost: Cost, config: NVILAConfig, load: Load, folder: Path) -> None:
    assert cost.peak == pytest.approx(measured(real(config), load, folder), rel=0.1)


@pytest.mark.filterwarnings("ignore::UserWarning")  # the profiler's, about its own events
def test_nano_takes_what_is_said(tmp_path: Path):
    config = description("nano")
    cost = estimate_step(config, LOAD)
    near(cost, config, LOAD, tmp_path)
    model = NVILA.from_pretrained("nano")
    assert cost.learning == sum(parameter.numel() for parameter in model.parameters())
    assert cost.gradients == cost.weights == 4 * cost.learning
    assert cost.optimizer == 2 * cost.gradients


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_model_of_half_a_billion_takes_what_is_said(tmp_path: Path):
    """Qwen2-0.5B behind a small tower."""
    config = description("nano")
    llm = config.llm.model_copy(
        update={
            "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
            "num_key_value_heads": 2, "vocab_size": 151936,
        }
    )  # fmt: skip
    config = config.model_copy(update={"llm": llm, "hidden_size": 896})
    near(estimate_step(config, LOAD), config, LOAD, tmp_path)


def test_what_makes_a_step_smaller():
    config = description("nano")
    plain = estimate_step(config, LOAD)
    few = estimate_step(config, LOAD, vision="layernorm", llm="frozen")
    assert few.gradients < plain.gradients
    assert few.peak < plain.peak
    again = estimate_step(config, LOAD, recompute="block")
    assert again.activations < plain.activations
    assert again.flops > plain.flops
    eight = estimate_step(config, LOAD, precision="fp8")
    half = estimate_step(config, LOAD, precision="bf16")
    assert eight.activations < half.activations


@pytest.mark.slow
def test_an_adapter_for_8b_fits_24_gb():
    """As the shipped recipe tunes it; without recomputation, or in full, it does not."""
    config, ways, precision, recompute, (dtype, frozen) = read("nvila-8b-qlora")
    assert (ways.vision, ways.llm, recompute) == ("layernorm", "qlora", "block")
    tuned = estimate_step(config, Load(), vision="layernorm", llm="qlora", rank=ways.rank, precision=precision,
                          recompute=recompute, dtype=dtype, frozen=frozen)  # fmt: skip
    assert tuned.fits(card_bytes("24GB"))
    full = estimate_step(config, Load(), recompute="block", dtype=torch.bfloat16)
    assert not full.fits(card_bytes("24GB"))


@pytest.mark.filterwarnings("ignore::UserWarning")  # the profiler's, about its own events
@pytest.mark.parametrize(("llm", "recompute"), [("full", "block"), ("lora", "none"), ("qlora", "none")])
def test_what_a_tuned_step_takes(tmp_path: Path, llm: Any, recompute: Any):
    """The same for adapters, over weights in four bits too, and for blocks that are computed again."""
    config = description("nano")
    vision = "full" if llm == "full" else "layernorm"
    cost = estimate_step(config, LOAD, vision=vision, llm=llm, rank=4, recompute=recompute)
    model = real(config)
    if llm != "full":
        tune(model, vision, llm, rank=4)
    learning = sum(parameter.numel() * 4 for parameter in model.parameters() if parameter.requires_grad)
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and is_packed(layer)]
    small = sum(packed_bytes(layer) - layer.weight.numel() for layer in layers)  # bytes are numbers of a packed weight
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) + small
    blocks = [*model.llm.layers, *model.get_submodule("vision.blocks").children()]
    model.train()
    with prepared(blocks, recompute=recompute):
        taken = allocated(lambda: step_loss(model, LOAD)[0].backward(), tmp_path)
    assert cost.peak == pytest.approx(weights + 2 * learning + taken, rel=0.1)
    assert cost.weights == pytest.approx(weights, rel=0.01)


def test_live_counts_storages_once_and_forgets_them():
    with Live() as live:
        a = torch.zeros(10, 10)
        b = a.t()[2:]
        assert live.now == 400
        c = a + 1
        del a
        assert live.now == 800, "a view still holds it"
        del b, c
        assert live.now == 0
    assert live.peak == 800


def test_the_command_prints_one_object():
    words = ["estimate", "nano", "--card", "1 GB", "--image", "64x64", "--text", "16", "--json"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["vision"] == found["llm"] == "full"
    assert found["fits"] is False
    assert found["peak"] > found["weights"] + found["optimizer"]


def test_the_command_says_whether_it_fits():
    words = ["estimate", "nano", "--card", "24GB", "--image", "64x64", "--text", "16"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "fits 24GB: " in result.stdout
    assert "TFLOP a step" in result.stdout


def test_sizes_that_cannot_be_read():
    with pytest.raises(RecipeError, match="image '64' is no size: write it as 1344x896"):
        size("64")
    with pytest.raises(RecipeError, match="card 'big' is no size: write it as 24GB"):
        card_bytes("big")
