"""The recipe runner on a model of a few thousand parameters: freezing, resuming, schedules, objectives, evaluation."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from nvila_model import NVILA
from nvila_train.cli.app import app
from nvila_train.nano.drawing import KINDS
from nvila_train.nano.objectives.patches import telling
from nvila_train.nano.patch_heads import (
    BACKGROUND,
    SHAPES,
    WEIGHTS,
    WITH_BACKGROUND,
    label_weights,
    patch_losses,
    targets_of,
)
from nvila_train.nano.patch_labels import PatchLabels
from nvila_train.nano.random_weights import new_trainee
from nvila_train.recipe import Recipe
from nvila_train.recipe_errors import RecipeError
from nvila_train.run import run, task_of
from nvila_train.trainee import PARTS, Trainee, param_groups
from nvila_train.trainer import checkpoint
from nvila_train.trainer.loop import NotFiniteError, train
from nvila_train.trainer.optim import rate_factor
from torch import nn
from typer.testing import CliRunner

SHIPPED = Path(__file__).parent.parent / "src" / "nvila_train" / "recipes"

TINY = """
name = "tiny"
seed = 3
[model]
scales = [32, 64, 96]
max_tiles = 9
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
width = 16
layers = 1
heads = 2
kv_heads = 1
mlp_width = 24
context = 512
"""


def stage(objective: str, rates: str, *, name: str = "", steps: int = 2) -> str:
    mix = "{ shapes = 1, documents = 1, charts = 1, clips = 1 }"
    return (
        f'[[stage]]\nname = "{name or objective}"\nobjective = "{objective}"\nrates = {{ {rates} }}\n'
        f"steps = {steps}\nsamples = 4\nmix = {mix}\n"
    )


STAGES = [
    stage("patches", "vision = 1e-2, patches = 1e-2"),
    stage("written", "llm = 1e-2, written = 1e-2"),
    stage("alignment", "projector = 1e-2"),
    stage("answers", "vision = 1e-3, projector = 1e-2, llm = 1e-2"),
    stage("questions", "vision = 1e-3, projector = 1e-2, llm = 1e-2"),
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run through every objective."""
    out = tmp_path_factory.mktemp("run")
    (out / "recipe.toml").write_text(TINY + "".join(STAGES))
    run(Recipe.read(out / "recipe.toml"), out)
    return out


@pytest.fixture
def trainee(finished: Path) -> Trainee:
    from nvila_train.run import tokenizer

    recipe = Recipe.read(finished / "recipe.toml")
    return new_trainee(recipe.config(rows=1), tokenizer(recipe, finished), seed=recipe.seed)


def test_a_run_leaves_a_checkpoint_that_answers(finished: Path):
    assert [json.loads(line)["step"] for line in (finished / "4-answers" / "log.jsonl").read_text().splitlines()] == [2]
    model = NVILA.from_pretrained(finished / "model")
    assert model.video_framing.pool is not None
    assert isinstance(model.generate([{"role": "user", "content": "Hello?"}]).text, str)


def test_evaluation_prints_one_object(finished: Path):
    arguments = ["eval", str(finished / "model"), "--seed", "1", "--count", "2", "--json"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert list(found["accuracy"]) == list(KINDS)
    assert all(0 <= share <= 1 for share in found["accuracy"].values())


@pytest.mark.parametrize("number", range(5))
def test_a_stage_moves_its_parts_and_no_others(finished: Path, trainee: Trainee, tmp_path: Path, number: int):
    chosen = Recipe.read(finished / "recipe.toml").stage[number]
    before = {name: value.clone() for name, value in trainee.state_dict().items()}
    groups = param_groups(trainee, chosen.rates)
    train(task_of(chosen, trainee, seed=1), trainee, groups=groups, steps=1, folder=tmp_path)
    for part in PARTS:
        module = trainee.part(part)
        prefix = part if part in ("patches", "written") else f"model.{part}"
        moved = any(not torch.equal(value, before[f"{prefix}.{name}"]) for name, value in module.state_dict().items())
        assert moved == (part in chosen.rates), part


@pytest.mark.parametrize("objective", range(5))
def test_a_resumed_stage_gives_the_same_losses(finished: Path, tmp_path: Path, objective: int):
    """Stopped after 2 of 4 steps and resumed, against never stopped: the same losses and weights."""
    from nvila_train.run import tokenizer

    recipe = Recipe.read(finished / "recipe.toml")
    chosen, words = recipe.stage[objective], tokenizer(recipe, finished)
    weights = []
    for folder, stops in ((tmp_path / "whole", [4]), (tmp_path / "parts", [2, 4])):
        for stop in stops:
            fresh = new_trainee(recipe.config(rows=1), words, seed=0)
            task = Stopping(task_of(chosen, fresh, seed=1), at=stop)
            try:
                train(
                    task, fresh, groups=param_groups(fresh, chosen.rates), steps=4, folder=folder,
                    log_every=1, save_every=1,
                )  # fmt: skip
            except KeyboardInterrupt:
                assert stop == 2
        weights.append(fresh.state_dict())
        assert [json.loads(line)["step"] for line in (folder / "log.jsonl").read_text().splitlines()] == [1, 2, 3, 4]
    whole, parts = (
        [json.loads(line)["loss"] for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        for name in ("whole", "parts")
    )
    assert whole == parts
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


class Stopping:
    """A task that is interrupted before batch ``at``."""

    def __init__(self, task: object, *, at: int) -> None:
        self.task, self.at = task, at

    def batch(self, step: int, rank: int, world: int) -> object:
        if step == self.at:
            raise KeyboardInterrupt
        return self.task.batch(step, rank, world)

    def loss(self, batch: object) -> object:
        return self.task.loss(batch)


def test_a_loss_that_is_not_finite_leaves_the_last_state(tmp_path: Path):
    class Breaks:
        def batch(self, step: int, rank: int, world: int) -> int:
            return step

        def loss(self, batch: int):
            return module.weight.sum() * (float("nan") if batch == 2 else 1.0), 1, {}

    module = nn.Linear(2, 2)
    with pytest.raises(NotFiniteError, match="the gradient of step 3 is nan: go on with --resume from step 2"):
        train(Breaks(), module, groups=[{"params": list(module.parameters()), "lr": 1e-3}], steps=4, folder=tmp_path,
              save_every=1)  # fmt: skip
    after = nn.Linear(2, 2)
    assert checkpoint.finished(tmp_path, after, steps=2)
    assert torch.isfinite(after.weight).all()
    assert not checkpoint.finished(tmp_path, after, steps=3)


def test_the_schedule_rises_and_falls():
    factors = [rate_factor(step, 100, floor=0.1) for step in range(100)]
    assert factors[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])
    assert factors[2:] == sorted(factors[2:], reverse=True)
    assert factors[-1] == pytest.approx(0.1, abs=1e-3)


def test_background_counts_a_tenth():
    """Two patches, a character and a background, scored uniformly but for one: by hand."""
    scores = {name: torch.zeros(1, 2, *shape) for name, shape in SHAPES.items()}
    scores["cover"][0, 0, 5] = 2.0
    none = torch.full((1, 2), -100)
    labels = PatchLabels(
        cover=torch.tensor([[5, 0]]),
        characters=torch.zeros(1, 2, 2, dtype=torch.long),
        objects=torch.zeros(1, 2, dtype=torch.long),
        sizes=none[..., None].expand(1, 2, 3),
    )
    classes = SHAPES["cover"][0]
    known = -torch.log_softmax(torch.tensor([2.0] + [0.0] * (classes - 1)), 0)[0]
    empty = torch.log(torch.tensor(float(classes)))
    losses, weights = patch_losses(scores, labels), label_weights(labels)
    torch.testing.assert_close(losses["cover"], known + BACKGROUND * empty)
    assert weights["cover"].tolist() == pytest.approx([1, BACKGROUND])
    assert weights["characters"].tolist() == pytest.approx([BACKGROUND] * 4)
    assert weights["width"].tolist() == [0, 0]
    assert losses["width"] == 0


@torch.no_grad()
def test_the_loss_of_patches_is_torchs_weighted_mean(finished: Path, trainee: Trainee):
    """Of a whole batch, and of one that was cut in three and added up."""
    chosen = Recipe.read(finished / "recipe.toml").stage[0]
    whole = task_of(chosen, trainee, seed=1).batch(0, 0, 1)
    scores = trainee.patches(trainee.model.vision(whole.tiles))
    true = 0.0
    for name, target in targets_of(whole.labels).items():
        counts = torch.ones(scores[name].shape[-1], dtype=torch.float64)
        counts[0] = BACKGROUND if name in WITH_BACKGROUND else 1.0
        flat = scores[name].flatten(0, -2).double()
        true += WEIGHTS[name] * float(nn.functional.cross_entropy(flat, target, weight=counts, ignore_index=-100))
    asked = whole.labels.characters > 0
    right = (scores["characters"].argmax(-1) == whole.labels.characters)[asked]
    for world in (1, 3):
        task = task_of(chosen, trainee, seed=1)
        found = [task.loss(task.batch(0, part, world)) for part in range(world)]
        tiles = sum(count for _, count, _ in found)
        assert tiles == len(whole.tiles)
        assert sum(float(loss) for loss, _, _ in found) / tiles == pytest.approx(true, rel=1e-5)
        read = sum(extra["read"] for _, _, extra in found) / tiles
        assert read == pytest.approx(float(right.double().mean()))


def test_empty_tiles_are_mostly_left_out_and_never_all():
    blank = torch.zeros(50, 4, dtype=torch.long)
    labels = PatchLabels(
        cover=blank,
        characters=blank[..., None].expand(50, 4, 2),
        objects=blank,
        sizes=blank[..., None].expand(50, 4, 3),
    )
    assert int(telling(labels, seed=0).sum()) == 1
    full = PatchLabels(cover=blank + 1, characters=labels.characters, objects=blank, sizes=labels.sizes)
    assert bool(telling(full, seed=0).all())


def test_the_shipped_nano_is_whole():
    recipe = Recipe.read(SHIPPED / "nano.toml")
    assert list(dict.fromkeys(entry.objective for entry in recipe.stage)) == [
        "patches",
        "written",
        "alignment",
        "answers",
        "questions",
    ]
    assert recipe.llm is not None
    assert recipe.vision is not None
    assert recipe.config(rows=recipe.llm.vocabulary).feature_channels == 3 * recipe.vision.width


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("seed = 3", "seed = 3\nsped = 4"), r"sped: there is no such field, did you mean 'seed'"),
        (("projector = 1e-2", "projektor = 1e-2"), r"stage\.2\.rates\.projektor"),
        (("charts = 1", "graphs = 1"), r"choose from shapes, documents, charts, clips"),
        (('name = "written"', 'name = "patches"'), r"stage 'patches' is there twice"),
        (("[model]", "[model"), r"is not TOML"),
        (("samples = 4", "samples = 4\naccumulate = 0"), r"stage\.0\.accumulate"),
        (("samples = 4", "samples = 4\nmuon = { llm = 1e-3 }"), r"stage 'patches': Muon needs whole matrices"),
        (("steps = 2", "steps = 0"), r"stage\.0\.steps"),
    ],
)
def test_a_faulty_recipe_is_refused_by_field(tmp_path: Path, change: tuple[str, str], said: str):
    path = tmp_path / "recipe.toml"
    head = 'parallel = "fsdp"\n' if "muon" in change[1] else ""
    path.write_text(head + (TINY + "".join(STAGES)).replace(*change, 1))
    with pytest.raises(RecipeError, match=said):
        Recipe.read(path)


def test_a_batch_that_cannot_be_shared_is_refused(finished: Path, tmp_path: Path):
    recipe = Recipe.read(finished / "recipe.toml")
    stages = tuple(entry.model_copy(update={"accumulate": 5}) for entry in recipe.stage)
    shutil.copytree(finished / "tokenizer", tmp_path / "tokenizer")
    with pytest.raises(
        RecipeError, match="4 samples a step cannot be shared by 1 processes x 5 parts: raise samples to 5"
    ):
        run(recipe.model_copy(update={"stage": stages}), tmp_path)


def test_a_recipe_that_is_not_there(tmp_path: Path):
    with pytest.raises(RecipeError, match="cannot read"):
        Recipe.read(tmp_path / "none.toml")


def test_unknown_parts_are_refused(trainee: Trainee):
    with pytest.raises(ValueError, match="no part 'tail' to train"):
        param_groups(trainee, {"tail": 1e-3})
