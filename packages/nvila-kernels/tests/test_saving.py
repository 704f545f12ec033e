"""Quantized models alone: the usual policy, what stays float, and folders that transformers loads."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import init_empty_weights
from nvila_kernels import W4A16, W8A8, Int4Linear, Int8Linear, QuantPolicy, load_quantized, quantize_, save_quantized
from nvila_kernels.cpu import optimize_
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    CompressedTensorsConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 80}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
TOKENS = torch.arange(24).reshape(2, 12)


def qwen2(*, tied: bool = False) -> Qwen2ForCausalLM:
    return Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=tied)).eval()


def llama() -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(**SIZES)).eval()


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


@pytest.mark.parametrize("tied", [False, True])
def test_the_usual_policy_leaves_the_head(tied: bool) -> None:
    model = qwen2(tied=tied)
    report = quantize_(model)
    assert report.kept == ("lm_head",)
    assert len(report.layers) == 14
    assert {type(layer.scheme) for layer in report.layers} == {W4A16}
    assert isinstance(model.model.layers[1].mlp.down_proj, Int4Linear)
    names = {each.name for each in report.floats}
    assert names == {name for name, _ in model.named_parameters()}
    assert "model.embed_tokens.weight" in names


def test_a_scheme_stands_for_a_policy() -> None:
    model = nn.Sequential(nn.Linear(64, 32), nn.MultiheadAttention(32, 4), nn.Embedding(8, 32))
    report = quantize_(model, W8A8())
    assert isinstance(model[0], Int8Linear)
    assert report.kept == ("1.out_proj",), "a class of its own stays"
    assert "float: 1.in_proj_weight (MultiheadAttention, 1 of 96 x 32, 0.0 MiB)" in str(report)


def test_what_stays_float_is_named() -> None:
    """Mixtures keep their experts in stacked tensors of three dimensions."""
    sizes = SIZES | {"moe_intermediate_size": 48, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 16}
    report = quantize_(Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes)))
    stacked = [each for each in report.floats if len(each.shape) == 3]
    assert {each.holder for each in stacked} == {"Qwen3MoeExperts"}
    assert len(stacked) == 4
    assert "float: model.layers.*.mlp.experts.down_proj (Qwen3MoeExperts, 2 of 4 x 64 x 48, 0.1 MiB)" in str(report)


def test_a_model_without_linear_layers_is_refused() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=16, n_positions=16))
    with pytest.raises(ValueError, match=r"1 of them output heads .*the weights stand in Conv1D, Embedding"):
        quantize_(model)


@pytest.mark.filterwarnings("ignore:You passed `quantization_config`")
@pytest.mark.parametrize("build", [qwen2, llama, lambda: qwen2(tied=True)], ids=["qwen2", "llama", "tied"])
@pytest.mark.parametrize(
    "scheme",
    [
        W4A16(group_size=32, symmetric=True),
        W4A16(group_size=32),
        W8A8(),
        QuantPolicy((("*.mlp.*", W4A16(group_size=0, symmetric=True)), ("*.self_attn.*", W8A8()))),
    ],
    ids=["symmetric", "w4a16", "w8a8", "mixed"],
)
def test_transformers_loads_the_folder(build: Any, scheme: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build()
    quantize_(model, scheme)
    save_quantized(model, tmp_path / "saved")
    # Without zero points nothing needs to be said; with them this release of the library expects a wrong shape.
    asked = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if scheme == W4A16(group_size=32) else {}
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32, **asked).eval()
    assert "quantization_config" in json.loads((tmp_path / "saved" / "config.json").read_text())
    expected = logits(model)
    torch.testing.assert_close(logits(theirs), expected, rtol=0, atol=0.02 * float(expected.abs().max()))


@pytest.mark.parametrize("tied", [False, True])
def test_it_comes_back_exactly_from_the_meta_device(tied: bool, tmp_path: Path) -> None:
    model = qwen2(tied=tied)
    quantize_(model, W4A16(group_size=32))
    save_quantized(model, tmp_path / "saved")
    with init_empty_weights():
        empty = qwen2(tied=tied)
    empty.tie_weights()
    loaded = load_quantized(empty, tmp_path / "saved")
    assert torch.equal(logits(loaded), logits(model))
    assert isinstance(loaded.model.layers[0].mlp.up_proj, Int4Linear)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    save_quantized(loaded, tmp_path / "again")
    first, again = (tmp_path / name / "model.safetensors" for name in ("saved", "again"))
    assert first.read_bytes() == again.read_bytes()


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(64, 32), nn.LayerNorm(32), nn.Linear(32, 8))


def test_any_model_and_mixed_schemes(tmp_path: Path) -> None:
    model = plain()
    x = torch.randn(5, 64)
    quantize_(model, QuantPolicy((("0", W4A16(group_size=32)), ("2", W8A8()))))
    save_quantized(model, tmp_path / "saved")
    with torch.device("meta"):
        empty = plain()
    assert torch.equal(load_quantized(empty, tmp_path / "saved")(x), model(x))
    assert torch.equal(load_quantized(plain(), tmp_path / "saved")(x), model(x))


def test_refusals_write_and_change_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    with pytest.raises(ValueError, match="the model has no quantized layer: call quantize_ first"):
        save_quantized(plain(), folder)
    odd = nn.Sequential(nn.Linear(64, 30))
    quantize_(odd, W4A16())
    with pytest.raises(ValueError, match="0 cannot be saved: pack-quantized cannot hold 30 outputs"):
        save_quantized(odd, folder)
    fast = plain()
    quantize_(fast, W4A16())
    optimize_(fast)
    with pytest.raises(ValueError, match="0 was optimized for this processor, which no file holds: save before"):
        save_quantized(fast, folder)
    assert not folder.exists()
    model = plain()
    quantize_(model, W4A16(group_size=32))
    save_quantized(model, folder)
    with pytest.raises(FileExistsError, match="exists: name a folder that does not"):
        save_quantized(model, folder)
    with pytest.raises(FileNotFoundError, match=r"holds no \.safetensors file"):
        load_quantized(plain(), tmp_path)
    others = {
        r"0 holds a weight of \(32, 64\), the model has \(16, 64\)": nn.Sequential(nn.Linear(64, 16)),
        r"lacks 1.3.weight": nn.Sequential(nn.Linear(64, 32), nn.ModuleDict({"3": nn.Linear(2, 2)})),
        r"the model has no place for 2.weight_": nn.Sequential(nn.Linear(64, 32)),
        r"1.weight has shape \(32,\), the model has \(16,\)": nn.Sequential(nn.Linear(64, 32), nn.LayerNorm(16)),
    }
    for said, other in others.items():
        with pytest.raises(ValueError, match=said):
            load_quantized(other, folder)
        assert type(other[0]) is nn.Linear


def test_buffers_without_values_are_refused(tmp_path: Path) -> None:
    model = qwen2()
    quantize_(model)
    save_quantized(model, tmp_path / "saved")
    with torch.device("meta"):
        empty = qwen2()
    with pytest.raises(ValueError, match=r"buffers stand in no file and have no values, model\.rotary_emb"):
        load_quantized(empty, tmp_path / "saved")
