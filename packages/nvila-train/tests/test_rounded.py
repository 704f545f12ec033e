"""Weights in bfloat16: random rounding against exact means, AdamW in float64, and torch's plain rounding."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from nvila_model import NVILA
from nvila_train import nano_recipes
from nvila_train.cli.app import app
from nvila_train.dry_run import dry_run
from nvila_train.estimate.recipe_step import read as formats
from nvila_train.recipe import Recipe
from nvila_train.recipe_errors import RecipeError
from nvila_train.run import begin, run
from nvila_train.trainer import rounded as module
from nvila_train.trainer.average import Average
from nvila_train.trainer.checkpoint import entries
from nvila_train.trainer.optim import BETAS, EPS, Optimizers, clipped
from nvila_train.trainer.rounded import RoundedAdamW, drawn, rounded, shares
from nvila_train.tuning import learnable
from torch import Tensor, nn
from typer.testing import CliRunner

RECIPE = """
name = "small"
seed = 3
[model]
scales = [32, 64]
max_tiles = 4
projector = "mlp_downsample"
frames = 4
pool = [2, 1, 1]
[vision]
tile = 32
patch = 8
width = 16
layers = 1
heads = 2
mlp_width = 24
[llm]
vocabulary = 300
width = 32
layers = 1
heads = 2
kv_heads = 1
mlp_width = 48
context = 512
"""


def test_the_mean_of_all_roundings_is_the_number():
    """Over every noise there is, each as likely as the others, exactly; and only neighbours are met."""
    torch.manual_seed(0)
    values = torch.cat([torch.randn(20), torch.tensor([0.0, 1.0, -1.5, 1e-30, 3e38, 1 / 3, -0.00390625001])])
    noise = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    found = rounded(values[:, None].expand(-1, len(noise)).contiguous(), noise.expand(len(values), -1))
    assert torch.equal(found.double().mean(1), values.double())
    spacing = 2.0 ** (values.double().abs().clamp(min=1e-99).log2().floor() - 7)
    assert bool(((found.double() - values.double()[:, None]).abs() < spacing[:, None]).all())
    assert all(len(row.unique()) <= 2 for row in found)
    exact = values.bfloat16()
    assert bool((rounded(exact.float()[:, None].expand(-1, 4).contiguous(), noise[-4:].expand(len(values), -1))
                 == exact[:, None]).all())  # fmt: skip


def test_noise_is_even():
    """Of 2^22 numbers every bit is set half of the time, and they are as spread as all sixteen bits are."""
    noise = drawn(2**22 + 3, device=torch.device("cpu"), generator=torch.Generator().manual_seed(1))
    assert noise.dtype == torch.int16
    assert noise.shape == (2**22 + 3,)
    for bit in range(16):
        assert float((noise.int() >> bit & 1).double().mean()) == pytest.approx(0.5, abs=0.002)
    assert len(noise.unique()) == 2**16
    halves = noise[: 2**22].view(-1, 4).double()
    assert bool((torch.corrcoef(halves.T) - torch.eye(4)).abs().max() < 0.01), "the four of a word are independent"


def stepped(weight: Tensor, gradients: list[Tensor], optimizer: Any) -> Tensor:
    """A weight after a step with each of the gradients."""
    for gradient in gradients:
        weight.grad = gradient.to(weight.dtype)
        optimizer.step()
    return weight.detach()


def test_a_step_is_that_of_adamw_in_the_mean(monkeypatch: pytest.MonkeyPatch):
    """Over 600 seeds, against torch's AdamW in float64, within five standard deviations; blocks of a few rows."""
    monkeypatch.setitem(module.BLOCK, "cpu", 12)
    torch.manual_seed(0)
    start, gradient = torch.randn(7, 5).bfloat16(), torch.randn(7, 5).bfloat16()
    true = nn.Parameter(start.double())
    stepped(true, [gradient], torch.optim.AdamW([true], lr=1e-3, weight_decay=0.0, betas=BETAS, eps=EPS))
    found = []
    for seed in range(600):
        weight = nn.Parameter(start.clone())
        found.append(stepped(weight, [gradient], RoundedAdamW([{"params": [weight], "lr": 1e-3}], seed=seed)).double())
    draws = torch.stack(found)
    error = (draws.mean(0) - true.detach()).abs()
    assert bool((error <= 5 * (draws.std(0) / 600**0.5).clamp(min=1e-6)).all())
    assert len(draws.flatten(1).unique(dim=0)) > 500, "every seed draws other numbers"


def test_steps_too_small_for_bfloat16_add_up():
    """300 steps of 1e-5 on weights of 1, whose lower neighbour is 0.0039 / 2 away; torch's AdamW stays where it is."""
    ends = []
    for make in (
        lambda weight: RoundedAdamW([{"params": [weight], "lr": 1e-5}], seed=1),
        lambda weight: torch.optim.AdamW([weight], lr=1e-5, weight_decay=0.0, betas=BETAS, eps=EPS),
    ):
        weight = nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16))
        ends.append(stepped(weight, [torch.full((64, 64), 0.1)] * 300, make(weight)).double())
    assert float(ends[0].mean()) == pytest.approx(1 - 300e-5, abs=3e-4)
    assert bool((ends[1] == 1).all())


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("shape", [(7, 5), (1, 40), (13,), (3, 2, 2), ()])
def test_shares_draw_what_the_whole_would(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], world: int):
    """A parameter that is cut by rows, as FSDP does, moves as one that is not."""
    monkeypatch.setitem(module.BLOCK, "cpu", 12)
    torch.manual_seed(0)
    start, gradient = torch.randn(shape).bfloat16(), torch.randn(shape)
    whole = nn.Parameter(start.clone())
    stepped(whole, [gradient] * 3, RoundedAdamW([{"params": [whole], "lr": 1e-2}], seed=4))
    rows = shape[0] if shape else 1
    each = -(-rows // world)
    parts = []
    for rank in range(world if shape else 1):
        first, last = min(rows, rank * each), min(rows, (rank + 1) * each)
        part = nn.Parameter(start[first:last].clone() if shape else start.clone())
        monkeypatch.setattr(module, "place", lambda tensor, first=first: (rows, first))
        stepped(part, [gradient[first:last] if shape else gradient] * 3,
                RoundedAdamW([{"params": [part], "lr": 1e-2}], seed=4))  # fmt: skip
        parts.append(part.detach())
    assert torch.equal(torch.cat(parts) if shape else parts[0], whole.detach())


def test_shares_cover_every_row_once():
    for rows, wide, first, held in ((10, 3, 0, 10), (10, 3, 2, 5), (4, 30, 1, 3), (5, 2, 5, 0), (0, 0, 0, 0)):
        found = list(shares(rows, wide, first=first, held=held, block_size=10))
        covered = [row for share in found for row in range(share.held.start, share.held.stop)]
        assert covered == list(range(held))
        height = max(1, 10 // max(1, wide))
        drawn = [share.block * height + row for share in found for row in range(share.drawn.start, share.drawn.stop)]
        assert drawn == list(range(first, first + held))
        assert all(share.drawn.stop <= share.size <= height for share in found)


def test_formats_do_not_mix_by_accident():
    large, small = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2).bfloat16())
    optimizer = Optimizers([{"params": [large, small], "lr": 1e-3, "name": "both"}], seed=2)
    kinds = {type(member).__name__: member.param_groups[0]["params"] for member in optimizer.members}
    assert kinds["AdamW"][0] is large
    assert kinds["RoundedAdamW"][0] is small
    assert {group["peak"] for group in optimizer.param_groups} == {1e-3}
    with pytest.raises(ValueError, match=r"a parameter of torch.float32 is not rounded to bfloat16"):
        RoundedAdamW([{"params": [large], "lr": 1e-3}], seed=2)
    with pytest.raises(ValueError, match="Muon would lose small steps in bfloat16"):
        Optimizers([{"params": [small], "lr": 1e-3, "muon": True}])


def test_a_norm_is_summed_up_in_float32():
    """Ten thousand gradients of bfloat16, whose own norm would have eight bits."""
    parameters = [nn.Parameter(torch.zeros(100, dtype=torch.bfloat16)) for _ in range(100)]
    torch.manual_seed(0)
    for parameter in parameters:
        parameter.grad = torch.randn(100).bfloat16()
    true = torch.cat([p.grad.double() for p in parameters if p.grad is not None])
    norm = clipped(parameters, 1.0)
    assert float(norm) == pytest.approx(float(true.norm()), rel=1e-5)
    after = torch.cat([p.grad.double() for p in parameters if p.grad is not None])
    assert float(after.norm()) == pytest.approx(1.0, rel=1e-2)


def test_an_average_of_small_weights_moves():
    weight = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    average = Average([("weight", weight)], decay=0.999)
    weight.data.fill_(1.0078125)
    for _ in range(100):
        average.update()
    true = 1.0078125 - 0.0078125 * 0.999**100
    torch.testing.assert_close(average.state["weight"], torch.full((3,), true))
    average.apply()
    assert weight.dtype == torch.bfloat16


def test_an_estimate_counts_the_bytes_of_a_weight(tmp_path: Path):
    """Gradient and two states: 12 bytes in float32, 6 in bfloat16."""
    text = 'precision = "bf16"\n' + recipe_text("answers", "llm = 1e-3, projector = 1e-3", steps=1)
    (tmp_path / "recipe.toml").write_text(text)
    arguments = ["estimate", str(tmp_path / "recipe.toml"), "--image", "64x64", "--text", "8", "--json"]
    found = []
    for more in ([], ["--weights", "bf16"]):
        result = CliRunner().invoke(app, [*arguments, *more])
        assert result.exit_code == 0, result.output
        cost = json.loads(result.stdout)
        found.append(((cost["gradients"] + cost["optimizer"]) / cost["learning"], cost["weights"], cost["peak"]))
    assert [each for each, _, _ in found] == [12, 6]
    assert found[1][1] == found[0][1] / 2
    assert found[1][2] < 0.6 * found[0][2]


def test_formats_of_what_is_estimated():
    """A model by its name is counted in bfloat16; a recipe as it says, unless another format is asked for."""
    half, full = (torch.bfloat16,) * 2, (torch.float32,) * 2
    assert formats("NVILA-8B")[-1] == half
    assert formats("NVILA-8B", "fp32")[-1] == full
    assert formats("nvila-8b")[-1] == full
    assert formats("nvila-8b", "bf16")[-1] == half
    with pytest.raises(RecipeError, match="no weights in 'fp64': choose from fp32, bf16"):
        formats("NVILA-8B", "fp64")
    with pytest.raises(RecipeError, match="weights: there is no 'fp64', choose from fp32, bf16"):
        formats("nvila-8b", "fp64")


SMALL = 'precision = "bf16"\nweights = "bf16"\n'


def recipe_text(objective: str, rates: str, *, steps: int) -> str:
    return (
        f'{RECIPE}\n[[stage]]\nname = "{objective}"\nobjective = "{objective}"\nrates = {{ {rates} }}\n'
        f"steps = {steps}\nsamples = 4\nmix = {{ shapes = 1, clips = 1 }}\n"
    )


def read(folder: Path, text: str) -> Recipe:
    (folder / "recipe.toml").write_text(text)
    return Recipe.read(folder / "recipe.toml")


def test_a_run_in_bfloat16_learns_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """From nothing, in two stages; the second goes on after the checkpoint was written, in the same format."""
    monkeypatch.setattr(nano_recipes, "VOCABULARY_SCENES", 150)
    text = SMALL + recipe_text("written", "llm = 1e-2, written = 1e-2", steps=60)
    recipe = read(tmp_path, text + recipe_text("answers", "llm = 1e-3, vision = 1e-3", steps=2).replace(RECIPE, ""))
    assert [stage.trained > 0 for stage in dry_run(recipe)] == [True, True]
    trainee = run(recipe, tmp_path)
    assert {parameter.dtype for parameter in trainee.parameters()} == {torch.bfloat16}
    losses = [json.loads(line)["loss"] for line in (tmp_path / "1-written" / "log.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.75 * losses[0], losses
    state = entries(tmp_path / "2-answers" / "state" / "00000002")
    kinds = {entry.properties.dtype for name, entry in state.items() if name.endswith((".weight", ".exp_avg"))}
    assert kinds == {torch.bfloat16}
    model = NVILA.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    saved = model.llm.state_dict()
    for name, value in trainee.model.llm.state_dict().items():  # the file is float16, whose small numbers end at 6e-8
        torch.testing.assert_close(saved[name], value, atol=6e-8, rtol=0, msg=name)


@pytest.mark.parametrize("objective", ["patches", "alignment", "questions"])
def test_every_objective_takes_a_step_in_bfloat16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, objective: str):
    monkeypatch.setattr(nano_recipes, "VOCABULARY_SCENES", 150)
    rates = {
        "patches": "vision = 1e-3, patches = 1e-3",
        "alignment": "projector = 1e-3, vision = 1e-3",
        "questions": "llm = 1e-3, projector = 1e-3",
    }
    recipe = read(tmp_path, SMALL + recipe_text(objective, rates[objective], steps=1))
    run(recipe, tmp_path)
    (line,) = (tmp_path / f"1-{objective}" / "log.jsonl").read_text().splitlines()
    assert 0 < json.loads(line)["loss"] < 20


def test_a_tuned_model_learns_in_the_format_that_is_asked_for(tmp_path: Path):
    pytest.importorskip("peft")
    stage = recipe_text("answers", "llm = 1e-3, projector = 1e-3", steps=1).replace(RECIPE, "")
    for weights, kind in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        head = f'name = "tuned"\nseed = 1\ninit = "nano"\nprecision = "bf16"\nweights = "{weights}"\n'
        tuned = '[tune]\nvision = "frozen"\nllm = "lora"\nrank = 4\n'
        trainee = begin(read(tmp_path, head + tuned + stage), tmp_path)
        learns = {id(parameter) for parameter in learnable(trainee)}
        assert {each.dtype for each in trainee.parameters() if id(each) in learns} == {kind}
        assert {each.dtype for each in trainee.parameters() if id(each) not in learns} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ('weights = "bf16"\n', "weights 'bf16' are not multiplied in fp32: use precision 'bf16' or 'fp8'"),
        ('precision = "bf16"\nweights = "fp16"\n', "weights: there is no 'fp16', did you mean 'bf16'"),
    ],
)
def test_recipes_that_do_not_fit(tmp_path: Path, head: str, said: str):
    with pytest.raises(RecipeError, match=said):
        read(tmp_path, head + recipe_text("answers", "llm = 1e-3", steps=2))


def test_muon_needs_weights_in_float32(tmp_path: Path):
    with pytest.raises(RecipeError, match="stage 'answers': Muon would lose small steps of weights 'bf16'"):
        read(tmp_path, SMALL + recipe_text("answers", "llm = 1e-3", steps=2) + "muon = { llm = 1e-3 }\n")
