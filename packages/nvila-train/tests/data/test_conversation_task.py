"""A stage on data of one's own: batches by step, whatever the processes, the workers and the faults."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nvila_model import ModelInputs
from nvila_train.conversation_task import ConversationTask
from nvila_train.data import ConversationDataset, DataError, DataSource, SkipWarning
from nvila_train.recipe import Recipe, Stage
from nvila_train.recipe_errors import RecipeError
from nvila_train.run import task_of
from nvila_train.trainee import Trainee, param_groups
from nvila_train.trainer import distributed

ROOT = Path(__file__).parents[4]
STAGE = {"name": "mine", "objective": "answers", "rates": {"llm": 1e-2, "projector": 1e-2}, "steps": 4, "samples": 3}
FORKING = pytest.mark.filterwarnings(
    "ignore:This DataLoader will create:UserWarning",  # a runner with one core
    "ignore:This process .* is multi-threaded:DeprecationWarning",  # Python 3.12's word on fork
)


def texts(batch: list[ModelInputs]) -> list[str]:
    return sorted(text for inputs in batch for text in inputs.prompt_text)


def make(trainee: Trainee, path: Path, **options: Any) -> ConversationTask:
    return ConversationTask(trainee=trainee, data=ConversationDataset(path, seed=1), **{"samples": 6, **options})


def test_ranks_share_a_batch(trainee: Trainee, numbered: Callable[..., Path]) -> None:
    path = numbered(40)
    alone = make(trainee, path)
    for step in (0, 1, 5):
        whole = texts(alone.batch(step, 0, 1))
        assert len(whole) == 6
        parts = [texts(make(trainee, path).batch(step, rank, 4)) for rank in range(4)]
        assert sorted(text for part in parts for text in part) == whole
        assert [len(part) for part in parts] == [2, 2, 1, 1]


@FORKING
def test_workers_change_nothing(trainee: Trainee, numbered: Callable[..., Path]) -> None:
    path = numbered(40)
    alone, ahead = make(trainee, path), make(trainee, path, workers=2)
    # resumed at 3, then begun anew; two parts a step, as where gradients are accumulated
    for step, rank in ((3, 0), (3, 1), (4, 0), (4, 1), (5, 0), (1, 0), (2, 0)):
        one, other = alone.batch(step, rank, 4), ahead.batch(step, rank, 4)
        assert [inputs.prompt_text for inputs in one] == [inputs.prompt_text for inputs in other]
        assert all(torch.equal(a, b) for a, b in zip(one[0].input_ids, other[0].input_ids, strict=True))


def test_the_limit_counts_all_processes(
    trainee: Trainee, numbered: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """None fails here; of eleven that the others left out, the run ends everywhere at once."""
    task = make(trainee, numbered(40))
    sent: list[dict[str, float]] = []
    monkeypatch.setattr(distributed, "sum_named", lambda values: sent.append(values) or {"left out": 11.0})
    with pytest.raises(DataError, match="all processes together left out 11 samples, the limit is 10: mend them"):
        task.batch(0, 0, 2)
    assert sent == [{"left out": 0}]


def test_faulty_samples_are_missing_from_their_batch(
    trainee: Trainee, write: Callable[..., Path], pictures: Path, records: list[dict[str, Any]]
) -> None:
    """A picture that does not decode, and a sample beyond the budget; the next step is as it would be."""
    long = {**records[2], "conversations": [records[2]["conversations"][0], {"from": "gpt", "value": "x" * 300}]}
    rows = [records[2], {**records[3], "image": "cut.png"}, long, records[4], records[2], records[4]]
    data = ConversationDataset(DataSource(path=str(write(rows)), media=str(pictures)), shuffle=False)
    task = ConversationTask(trainee=trainee, data=data, samples=4, budget=250, skip=2)
    with pytest.warns(SkipWarning) as caught:
        batch = task.batch(0, 0, 1)
    told = [str(warning.message) for warning in caught]
    assert "train.jsonl row 2: " in told[0]
    assert "cut short or corrupt" in told[0]
    assert "row 3: 3" in told[1]
    assert "> the budget of 250: raise the budget" in told[1]
    assert len(texts(batch)) == 2
    assert len(texts(make(trainee, write(rows[4:] + rows[:1])).batch(0, 0, 1))) == 6
    with pytest.warns(SkipWarning), pytest.raises(DataError, match="2 samples cannot be used, the limit is 1"):
        ConversationTask(trainee=trainee, data=data, samples=4, budget=250, skip=1).batch(0, 0, 1)


@pytest.mark.filterwarnings("ignore::nvila_train.data.SkipWarning")
def test_a_process_left_with_nothing_takes_from_further_on(
    trainee: Trainee, write: Callable[..., Path], records: list[dict[str, Any]]
) -> None:
    rows = [{"conversations": []}, records[2], {"conversations": []}, records[4]]
    data = ConversationDataset(write(rows), shuffle=False)
    task = ConversationTask(trainee=trainee, data=data, samples=2)
    later = ConversationTask(trainee=trainee, data=data, samples=1).batch(3, 0, 1)
    assert texts(task.batch(0, 0, 2)) == texts(later)
    for row in rows:
        row["conversations"] = []
    broken = ConversationDataset(write(rows, "broken.jsonl"), shuffle=False)
    with pytest.raises(DataError, match="11 samples cannot be used, the limit is 10"):
        ConversationTask(trainee=trainee, data=broken, samples=2).batch(0, 0, 1)


def test_the_example_is_learnt(trainee: Trainee) -> None:
    """Four rows with two pictures, a clip and plain text, through the recipe's door: the loss falls."""
    stage = Stage.model_validate({**STAGE, "data": [{"path": str(ROOT / "examples" / "conversations.jsonl")}]})
    if not (ROOT / "examples" / "receipt.png").is_file():
        pytest.skip("the drawn pictures are not in this checkout")
    before = {name: value.clone() for name, value in trainee.state_dict().items()}
    task = task_of(stage, trainee, seed=1)
    optimizer = torch.optim.AdamW([dict(group) for group in param_groups(trainee, stage.rates)])
    means = []
    for step in range(5):
        loss, count, _ = task.loss(task.batch(step, 0, 1))
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
        means.append(loss.item() / count)
    trainee.load_state_dict(before)
    trainee.requires_grad_(True)
    assert means[-1] < 0.97 * means[0]


def recipe(tmp_path: Path, stage: str) -> Path:
    text = (ROOT / "packages/nvila-train/src/nvila_train/recipes/nano.toml").read_text()
    head = text.split("[[stage]]")[0]
    path = tmp_path / "recipe.toml"
    path.write_text(head + "[[stage]]\n" + stage)
    return path


GIVEN = """
name = "mine"
objective = "answers"
rates = { llm = 1e-3 }
steps = 2
samples = 4
data = [{ path = "train.jsonl", media = "images/", weight = 2.0, name = "mine" }, { path = "hub:a/b", weight = 1 }]
"""


def test_paths_begin_at_the_recipe(tmp_path: Path) -> None:
    stage = Recipe.read(recipe(tmp_path, GIVEN)).stage[0]
    assert stage.data[0].path == str(tmp_path / "train.jsonl")
    assert stage.data[0].folder == tmp_path / "images"
    assert (stage.data[0].label, stage.data[0].weight) == ("mine", 2.0)
    assert (stage.data[1].path, stage.data[1].label, stage.data[1].folder) == ("hub:a/b", "b", None)
    assert Stage.model_validate(json.loads(stage.model_dump_json(exclude_unset=True))) == stage


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("data = ", "mix = { shapes = 1 }\ndata = "), "give the stage either mix, to draw scenes, or data"),
        (("data = [{", "# [{"), "give the stage either mix, to draw scenes, or data"),
        (("answers", "written"), "data trains 'answers', not 'written', which needs drawn scenes: give mix"),
        (("steps", "captions = 0.5\nsteps"), "captions says nothing about data: leave it out"),
        (("weight = 1 ", "wait = 1 "), r"stage.0.data.1.wait: there is no such field, did you mean 'weight'"),
        ((", weight = 1 ", ""), r"stage.0.data: .*source 'b' has no weight but others have"),
        (("weight = 1 ", 'weight = 1, name = "mine" '), "two sources are called 'mine'"),
        (("weight = 1 ", "weight = 0 "), r"stage.0.data.1.weight: Input should be greater than 0"),
        (("hub:a/b", ""), r"stage.0.data.1.path: String should have at least 1 character"),
    ],
)
def test_a_faulty_stage_is_refused(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        Recipe.read(recipe(tmp_path, GIVEN.replace(*change)))


def test_a_drawn_stage_has_no_budget(tmp_path: Path) -> None:
    drawn = GIVEN.replace("data = [{", "budget = 100\nmix = { shapes = 1 } # [{")
    with pytest.raises(RecipeError, match="budget says nothing about drawn scenes: leave it out"):
        Recipe.read(recipe(tmp_path, drawn))
