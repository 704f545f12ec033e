"""The folder of a run: made once by the first process, refused if it holds a run, gone if nothing was learnt."""

import multiprocessing
import runpy
import shutil
from pathlib import Path

import pytest
from nvila_train.recipe_errors import RecipeError
from nvila_train.run_folder import RunFolder, has_learnt

WORKER = Path(__file__).parent / "processes" / "starting.py"

RECIPE = """
name = "mine"
seed = 1
init = "nano"
[[stage]]
name = "one"
objective = "answers"
rates = { llm = 1e-3 }
steps = 2
samples = 2
data = [{ path = "train.jsonl" }]
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE)
    (tmp_path / "train.jsonl").write_text("{}\n")
    return path


def learn(out: Path) -> None:
    state = out / "1-one" / "state" / "00000002"
    state.mkdir(parents=True)
    (state / ".metadata").write_text("")


def fail(folder: RunFolder, why: str, *, state: bool = False) -> None:
    """A run that fails, before or after it has saved a state."""
    with folder:
        (folder.out / "1-one").mkdir()
        if state:
            learn(folder.out)
        raise ValueError(why)


def test_what_fails_before_it_has_learnt_leaves_nothing(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    for _ in range(2):  # the same command again
        with pytest.raises(ValueError, match="bad data"):
            fail(RunFolder(out, recipe, resume=False), "bad data")
        assert not out.exists()


def test_what_has_learnt_stays_and_is_not_begun_anew(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(ValueError, match="later"):
        fail(RunFolder(out, recipe, resume=False), "later", state=True)
    assert has_learnt(out)
    with (
        pytest.raises(RecipeError, match="run exists: add --resume to go on with it"),
        RunFolder(out, recipe, resume=False),
    ):
        pass
    with RunFolder(out, recipe, resume=True):
        assert (out / "recipe.toml").read_text() == RECIPE


def test_what_a_killed_start_left_is_begun_anew(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    (out / "1-one" / "state" / "00000001").mkdir(parents=True)  # no .metadata: half written
    (out / "1-one" / "log.jsonl").write_text("")
    (out / "tokenizer").mkdir()
    shutil.copy(recipe, out / "recipe.toml")
    with RunFolder(out, recipe, resume=False):
        assert sorted(path.name for path in out.iterdir()) == ["data.json", "recipe.toml"]


@pytest.mark.parametrize("name", ["thesis.txt", "2-mine/thesis.txt"])
def test_a_folder_of_something_else_is_left_alone(recipe: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "run"
    (out / name).parent.mkdir(parents=True)
    (out / name).write_text("years of work")
    shutil.copy(recipe, out / "recipe.toml")
    with pytest.raises(RecipeError, match="exists"), RunFolder(out, recipe, resume=False):
        pass
    assert (out / name).read_text() == "years of work"


def test_a_recipe_inside_its_folder_is_not_removed(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "recipe.toml").write_text(RECIPE)
    with pytest.raises(ValueError, match="bad"):
        fail(RunFolder(out, out / "recipe.toml", resume=False), "bad")
    assert (out / "recipe.toml").read_text() == RECIPE


def test_what_has_changed_is_said(recipe: Path, tmp_path: Path) -> None:
    out, said = tmp_path / "run", []
    with RunFolder(out, recipe, resume=True, say=said.append):
        learn(out)
    with RunFolder(out, recipe, resume=True, say=said.append):
        pass
    assert said == []
    recipe.write_text(RECIPE.replace("1e-3", "2e-3").replace("samples = 2", "samples = 2\nclip = 0.5"))
    (tmp_path / "train.jsonl").write_text("{ }\n")
    with RunFolder(out, recipe, resume=True, say=said.append):
        pass
    assert [each.removeprefix("changed since the run began: ") for each in said] == [
        "stage.0.rates.llm was 0.001, is 0.002",
        "stage.0.clip was 1.0, is 0.5",
        f"the data in {tmp_path / 'train.jsonl'}",
    ]


def test_a_file_in_its_place(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    for resume in (False, True):
        with (
            pytest.raises(RecipeError, match="run is a file: choose another --out"),
            RunFolder(tmp_path / "run", recipe, resume=resume),
        ):
            pass


def test_several_processes_start_at_once(recipe: Path, tmp_path: Path) -> None:
    """None finds the folder that another has just made; a folder with a run is refused by all."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["nvila_train.trainer.loop", "nvila_train.run_folder", "nvila_model"])
    settings = {"out": str(tmp_path / "run"), "recipe": str(recipe), "world": 2, "store": str(tmp_path / "store")}
    each = [{"SETTINGS": {**settings, "rank": rank}} for rank in range(2)]
    processes = [context.Process(target=runpy.run_path, args=(str(WORKER), given, "__main__")) for given in each]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    for rank in range(2):
        first, second = Path(f"{settings['store']}.{rank}").read_text().split("\n")
        assert first == "open"
        assert second.endswith("run exists: add --resume to go on with it, or choose another --out")
