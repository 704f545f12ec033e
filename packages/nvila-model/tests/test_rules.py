"""Rules for single layers: read from TOML, carried out on disk and in memory, refused where they say nothing."""

import json
from pathlib import Path

import pytest
import torch
from compressed_tensors.quantization import QuantizationConfig
from nvila_kernels import W4A16, W8A8, Int4Linear, Int8Linear
from nvila_kernels.formats import IntQuantized, PackQuantized, formats_of
from nvila_model import NVILA
from nvila_model.checkpoint import CheckpointError
from nvila_model.checkpoint.quantized import quantized_layers
from nvila_model.cli.app import app
from nvila_model.quantization.blocks import quantize_model
from nvila_model.quantization.rules import PolicyError, read_policy
from typer.testing import CliRunner

RULES = """
[[rule]]
layers = "llm.layers.0.*"
skip = true

[[rule]]
layers = ["llm.layers.*.down_proj", "llm.layers.*.up_proj"]
bits = 4
group = 32

[[rule]]
layers = "llm.layers.*.o_proj"
bits = 8

[[rule]]
layers = "llm.layers.*"
bits = 4

[[rule]]
layers = "vision.*.mlp.*"
bits = 8
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "rules.toml").write_text(RULES)
    return tmp_path / "rules.toml"


def nvila(*words: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, result.stdout, result.stderr


def test_the_first_match_decides(file: Path) -> None:
    policy = read_policy(file)
    found = {name: policy.scheme_of(f"llm.layers.{name}") for name in ("0.mlp.up_proj", "1.mlp.up_proj", "1.q_proj")}
    assert found == {"0.mlp.up_proj": None, "1.mlp.up_proj": W4A16(group_size=32), "1.q_proj": W4A16()}
    assert policy.scheme_of("llm.layers.1.self_attn.o_proj") == W8A8()
    assert policy.scheme_of("vision.blocks.0.attn.qkv") is None


def test_a_mixed_model_is_written_and_comes_back(file: Path, tmp_path: Path) -> None:
    code, out, err = nvila("quantize", "nano", tmp_path / "mixed", "--policy", file, "--json")
    assert code == 0, err
    schemes = {line["name"]: line["scheme"] for line in json.loads(out)["layers"]}
    assert not any(name.startswith("llm.layers.0.") or "attn.qkv" in name for name in schemes)
    assert schemes["llm.layers.1.mlp.down_proj"] == "w4a16 g32"
    assert schemes["llm.layers.1.self_attn.o_proj"] == "w8a8"
    memory = NVILA.from_pretrained("nano")
    quantize_model(memory, policy=read_policy(file))
    disk = NVILA.from_pretrained(str(tmp_path / "mixed"), optimize=False)
    mine, theirs = memory.state_dict(), disk.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert isinstance(disk.llm.layers[1].self_attn.o_proj, Int8Linear)
    assert isinstance(disk.llm.layers[1].self_attn.q_proj, Int4Linear)
    memory.save_pretrained(str(tmp_path / "again"))
    again = NVILA.from_pretrained(str(tmp_path / "again"), optimize=False).state_dict()
    assert all(torch.equal(again[name], theirs[name]) for name in theirs)


def test_its_configuration_is_that_of_compressed_tensors(file: Path, tmp_path: Path) -> None:
    assert nvila("quantize", "nano", tmp_path / "mixed", "--policy", file)[0] == 0
    fields = json.loads((tmp_path / "mixed" / "llm" / "config.json").read_text())["quantization_config"]
    theirs = QuantizationConfig.model_validate(fields)
    assert theirs.format == "mixed-precision"
    bits = {
        target: scheme.weights.num_bits for scheme in theirs.config_groups.values() for target in scheme.targets
    }  # fmt: skip
    assert bits["model.layers.1.self_attn.o_proj"] == 8
    assert bits["model.layers.1.mlp.up_proj"] == 4
    assert {type(form) for form in formats_of(fields)} == {PackQuantized, IntQuantized}
    layers = quantized_layers(NVILA.from_pretrained(str(tmp_path / "mixed"), optimize=False).llm)
    assert {f"model.{name}" for name in layers} == set(bits)
    assert "model.layers.0.mlp.up_proj" in fields["ignore"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rule = 3", "rule: Input should be a valid list"),
        ("[[rule]]\nlayers = '*'", "rule 1: a rule says either skip = true or bits = 4 or 8"),
        ("[[rule]]\nlayers = '*'\nskip = true\nbits = 4", "either skip = true or bits"),
        ("[[rule]]\nlayers = '*'\nbits = 8\ngroup = 32", "group belongs to bits = 4"),
        ("[[rule]]\nlayers = '*'\nbits = 3", "rule 1 bits"),
        ("[[rule]]\nlayers = '*'\nbits = 4\nsize = 3", "rule 1 size"),
        ("[[rule", "is not a TOML file of rules"),
    ],
)
def test_a_file_that_says_nothing_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text(text)
    with pytest.raises(PolicyError, match=message):
        read_policy(tmp_path / "rules.toml")


@pytest.mark.parametrize(
    ("rules", "words", "message"),
    [
        ("layers = 'llm.lm_head'\nbits = 4", [], "matches no layer"),
        ("layers = 'projector.*'\nbits = 4", [], "reaches no layer of a block"),
        ("layers = 'llm.layers.*'\nbits = 4\ngroup = 48", [], "group size 48"),
        ("layers = 'llm.layers.*'\nbits = 4", ["--group", "32"], "--policy decides for every layer, --group too"),
    ],
)
def test_rules_without_a_layer_are_refused(rules: str, words: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text(f"[[rule]]\n{rules}\n")
    code, _, err = nvila("quantize", "nano", tmp_path / "new", "--policy", tmp_path / "rules.toml", *words)
    assert code == 2
    assert message in err
    assert not (tmp_path / "new").exists()


HALF_RULES = """
[[rule]]
layers = "llm.layers.*"
bits = 4
accumulate = "float16"
"""


def test_sums_in_float16_reach_the_layers(tmp_path: Path) -> None:
    """Kept in the checkpoint for float16 activations; the option decides over it, and refuses others."""
    (tmp_path / "half.toml").write_text(HALF_RULES)
    half, plain = tmp_path / "half", tmp_path / "plain"
    assert nvila("quantize", "nano", half, "--policy", tmp_path / "half.toml")[0] == 0
    assert nvila("quantize", "nano", plain, "--vision", "none")[0] == 0

    def sums(folder: Path, **options: object) -> set[torch.dtype]:
        layers = quantized_layers(NVILA.from_pretrained(str(folder), optimize=False, **options)).values()
        return {layer.accumulate for layer in layers if isinstance(layer, Int4Linear)}

    fp16 = torch.float16
    assert sums(half) == sums(plain) == {torch.float32}, "in float32 on a processor"
    assert sums(half, dtype=fp16) == {fp16}
    assert sums(half, dtype=fp16, accumulate="float32") == {torch.float32}
    assert sums(plain, dtype=fp16, accumulate="float16") == {fp16}
    NVILA.from_pretrained(str(half), dtype=fp16, optimize=False).save_pretrained(str(tmp_path / "again"))
    assert sums(tmp_path / "again", dtype=fp16) == {fp16}
    code, _, err = nvila("ask", "--model", plain, "--accumulate", "float16", "Hello")
    assert code == 2
    assert "accumulate 'float16' needs float16 activations, not torch.float32: load with dtype float16" in err
    with pytest.raises(CheckpointError, match="is of 4-bit layers"):
        NVILA.from_pretrained("nano", dtype=fp16, accumulate="float16")


def test_a_part_has_one_kind_of_sums(tmp_path: Path) -> None:
    (tmp_path / "two.toml").write_text('[[rule]]\nlayers = "llm.layers.0.*"\nbits = 4\n' + HALF_RULES)
    code, _, err = nvila("quantize", "nano", tmp_path / "two", "--policy", tmp_path / "two.toml")
    assert code == 2
    assert "4-bit layers of the llm part sum in float16 and in float32" in err
    assert not (tmp_path / "two").exists()
