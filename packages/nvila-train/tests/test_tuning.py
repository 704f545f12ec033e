"""Tuning nano: what learns, adapters against ``peft``'s own reading of them, NF4 against the paper's table."""

import json
import sys
from pathlib import Path

import PIL.Image
import pytest
import torch
from nvila_model import NVILA, Image
from nvila_model.checkpoint import CheckpointError
from nvila_train.recipe import Recipe
from nvila_train.recipe_errors import RecipeError
from nvila_train.run import run
from nvila_train.trainee import Trainee, param_groups
from nvila_train.tuning import TuningError, is_tuned, merge, tune
from nvila_train.tuning.adapter import save_adapter
from nvila_train.tuning.nf4 import BITS, MissingExtraError, packed, packed_bytes, unpacked
from safetensors.torch import load_file
from torch import Tensor, nn

TALK = [
    {"role": "user", "content": [Image(PIL.Image.radial_gradient("L").convert("RGB")), "What is it?"]},
    {"role": "assistant", "content": "A circle."},
]
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip
"""The sixteen values, from appendix E of the QLoRA paper."""


@pytest.fixture(scope="module")
def original() -> NVILA:
    return fresh()


@pytest.fixture
def nano() -> NVILA:
    return fresh()


def fresh() -> NVILA:
    return NVILA.from_pretrained("nano")


def scores(model: NVILA) -> Tensor:
    with torch.no_grad():
        return model.eval()(model.needed_processor().for_training(TALK)).logits


def learn(model: NVILA) -> None:
    """A few steps, so that nothing that learns is where it began."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-2)
    for _ in range(3):
        model.train().loss(model.needed_processor().for_training(TALK)).backward()
        optimizer.step()
        optimizer.zero_grad()


def kinds(model: NVILA) -> set[str]:
    """What learns, in a word each: the part, and norm or adapter where it is not all of it."""
    found = set()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            how = " adapter" if "lora" in name else " norm" if "norm" in name else ""
            found.add(name.split(".")[0] + how)
    return found


@pytest.mark.parametrize(
    ("ways", "learning"),
    [
        ({"vision": "layernorm", "llm": "lora"}, {"vision norm", "llm adapter", "projector"}),
        ({"vision": "lora", "llm": "qlora", "projector": "frozen"}, {"vision adapter", "llm adapter"}),
        ({"vision": "full", "llm": "frozen"}, {"vision", "vision norm", "projector"}),
        ({"vision": "frozen", "llm": "full"}, {"llm", "llm norm", "projector"}),
    ],
)
def test_what_was_asked_for_learns_and_nothing_else(nano: NVILA, ways: dict[str, str], learning: set[str]) -> None:
    before = scores(nano)
    tune(nano, **ways)
    assert kinds(nano) == learning
    if ways["llm"] != "qlora":
        assert torch.equal(scores(nano), before), "a new adapter changes no answer"
    frozen = {name: value.clone() for name, value in nano.named_parameters() if not value.requires_grad}
    moving = {name: value.clone() for name, value in nano.named_parameters() if value.requires_grad}
    learn(nano)
    after = dict(nano.named_parameters())
    assert all(torch.equal(value, after[name]) for name, value in frozen.items())
    still = {name for name, value in moving.items() if torch.equal(value, after[name])}
    assert not {name for name in still if not name.endswith(("k_proj.bias", "embed_tokens.weight"))}


@pytest.mark.parametrize(
    ("vision", "llm"), [("layernorm", "lora"), ("lora", "qlora"), ("full", "lora"), ("layernorm", "frozen")]
)
def test_an_adapter_is_the_same_in_memory_on_disk_merged_and_in_peft(
    nano: NVILA, original: NVILA, tmp_path: Path, vision: str, llm: str
) -> None:
    tune(nano, vision, llm, rank=4, dropout=0.1)
    learn(nano)
    tuned = scores(nano)
    save_adapter(nano, tmp_path, base="nano")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]

    merge(nano)
    torch.testing.assert_close(scores(nano), tuned, rtol=1e-4, atol=1e-4)
    assert not is_tuned(nano)
    assert nano.state_dict().keys() == original.state_dict().keys()

    from peft import PeftModel

    theirs = scores(PeftModel.from_pretrained(fresh(), str(tmp_path)).merge_and_unload())
    ours = scores(NVILA.from_pretrained("nano", adapter=tmp_path))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(ours, scores(original), atol=1e-2)
    if llm != "qlora":  # there the base was rounded while it was tuned
        torch.testing.assert_close(ours, tuned, rtol=1e-4, atol=1e-4)


def test_an_adapter_without_lora_holds_norms_only(nano: NVILA, tmp_path: Path) -> None:
    save_adapter(tune(nano, "layernorm", "frozen", projector="frozen"), tmp_path)
    assert all(".norm" in name for name in load_file(tmp_path / "adapter_model.safetensors"))


def test_four_bits_are_the_table_of_the_paper(nano: NVILA) -> None:
    """Each block of 64 weights: the nearest of the sixteen values, times the block's largest."""
    layer = nn.Linear(256, 48)
    small = packed(layer, __import__("bitsandbytes"))
    blocks = layer.weight.detach().reshape(-1, 64)
    largest = blocks.abs().amax(1, keepdim=True)
    table = torch.tensor(NF4)
    nearest = table[(blocks / largest)[..., None].sub(table).abs().argmin(-1)] * largest
    # The factors are rounded to 8 bits, an eighth of a percent of the range of their block of 256.
    torch.testing.assert_close(unpacked(small).reshape(-1, 64), nearest, rtol=0.02, atol=1e-6)
    assert packed_bytes(small) == pytest.approx(layer.weight.numel() * BITS / 8, rel=0.01)
    x = torch.randn(3, 256)
    torch.testing.assert_close(small(x), x @ unpacked(small).T + layer.bias)


@pytest.mark.parametrize(
    ("ways", "said"),
    [
        ({"vision": "qlora"}, "no way 'qlora' to tune vision: choose from full, layernorm, lora, frozen"),
        ({"vision": "frozen", "llm": "frozen", "projector": "frozen"}, "everything is frozen: let vision, llm or"),
        ({"rank": 0}, "rank 0 is below 1"),
        ({"dropout": 1.0}, "dropout 1.0 is not a share"),
    ],
)
def test_what_cannot_be_tuned(original: NVILA, ways: dict[str, object], said: str) -> None:
    with pytest.raises(TuningError, match=said):
        tune(original, **ways)


def test_a_model_is_tuned_once(nano: NVILA, tmp_path: Path) -> None:
    with pytest.raises(TuningError, match="the model has no adapter"):
        save_adapter(nano, tmp_path)
    save_adapter(tune(nano, rank=4), tmp_path)
    with pytest.raises(TuningError, match="tuned already: merge it"):
        tune(nano)


def test_without_the_extras(nano: NVILA, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtraError, match=r"peft is not installed: pip install 'nvila-train\[peft\]'"):
        tune(nano)
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'nvila-train\[qlora\]'"):
        tune(nano, llm="qlora")


def test_an_adapter_that_does_not_fit_is_refused(nano: NVILA, tmp_path: Path) -> None:
    save_adapter(tune(nano, "layernorm", "lora", rank=2), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())

    def refused(said: str, **changes: object) -> None:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | changes))
        with pytest.raises(CheckpointError, match=said):
            NVILA.from_pretrained("nano", adapter=tmp_path)

    refused("is of type IA3: only LORA", peft_type="IA3")
    refused("uses use_dora, which is not known here", use_dora=True)
    refused("uses bias, which", bias="all")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no")
    refused("cannot be read")
    (tmp_path / "adapter_model.safetensors").unlink()
    refused("is missing: an adapter folder needs it")


RECIPE = """
name = "mine"
seed = 1
init = "nano"
[tune]
vision = "layernorm"
llm = "lora"
rank = 2
[[stage]]
name = "alone"
objective = "answers"
rates = { llm = 1e-2 }
steps = 2
samples = 2
mix = { shapes = 1 }
[[stage]]
name = "together"
objective = "answers"
rates = { vision = 1e-3, projector = 1e-2, llm = 1e-2 }
steps = 1
samples = 2
mix = { shapes = 1 }
"""


def test_a_recipe_tunes_a_checkpoint_and_leaves_an_adapter(tmp_path: Path, original: NVILA) -> None:
    """A part frozen in one stage learns in the next; a second run finds both done and gives the same."""
    (tmp_path / "recipe.toml").write_text(RECIPE)
    trainee = run(Recipe.read(tmp_path / "recipe.toml"), tmp_path / "run")
    before = original.state_dict()
    after = trainee.model.state_dict()
    assert torch.equal(after["llm.embed_tokens.weight"], before["llm.embed_tokens.weight"])
    assert not torch.equal(after["projector.layers.2.weight"], before["projector.layers.2.weight"])
    assert not torch.equal(after["vision.blocks.0.norm1.weight"], before["vision.blocks.0.norm1.weight"])
    assert not (tmp_path / "run" / "model").exists()
    answers = scores(NVILA.from_pretrained("nano", adapter=tmp_path / "run" / "adapter"))
    torch.testing.assert_close(answers, scores(trainee.model), rtol=1e-4, atol=1e-4)
    again = run(Recipe.read(tmp_path / "recipe.toml"), tmp_path / "run")
    torch.testing.assert_close(scores(again.model), answers, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('init = "nano"\n', ""), "table llm is missing: describe the model, or name one to begin with in init"),
        (('"answers"', '"alignment"'), "stage 'alone': a model from init learns answers, not alignment"),
        (("rank = 2", "rank = 0"), r"tune\.rank"),
        (('"lora"', '"lorra"'), r"tune\.llm"),
        (("[tune]", "[vision]\ntile = 64\npatch = 16\nwidth = 8\nlayers = 1\nheads = 1\nmlp_width = 8\n[tune]"),
         "init brings its own sizes: leave vision out"),
    ],
)  # fmt: skip
def test_faulty_recipes(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE.replace(*change, 1))
    with pytest.raises(RecipeError, match=said):
        Recipe.read(tmp_path / "recipe.toml")


def test_a_rate_for_what_is_frozen(nano: NVILA) -> None:
    trainee = Trainee(tune(nano, "frozen", "lora"))
    with pytest.raises(ValueError, match="part 'vision' has a rate, but nothing in it learns"):
        param_groups(trainee, {"vision": 1e-3})
    (group,) = param_groups(trainee, {"llm": 1e-3})
    assert len(group["params"]) == 6 * 7 * 2
