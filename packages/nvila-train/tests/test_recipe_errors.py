"""A faulty recipe is refused in one sentence, with the field and the nearest name."""

from pathlib import Path
from typing import get_args

import pytest
from nvila_train.nano_recipes import OBJECTIVES
from nvila_train.recipe import Objective, Recipe
from nvila_train.recipe_errors import RecipeError

SOUND = """
name = "mine"
seed = 1
init = "nano"
[tune]
llm = "lora"
[[stage]]
name = "one"
objective = "answers"
rates = { llm = 1e-3 }
steps = 2
samples = 2
data = [{ path = "train.jsonl", weight = 1 }]
"""


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("llm = 1e-3", 'llm = "1e-3"', "stage.0.rates.llm: '1e-3' is text, not a number: leave the quotes out"),
        ("steps = 2", 'steps = "2"', "stage.0.steps: '2' is text, not a number: leave the quotes out"),
        ("weight = 1", "weigth = 1", "stage.0.data.0.weigth: there is no such field, did you mean 'weight'?"),
        ("seed = 1", "seed = 1\nprecison = 'bf16'", "precison: there is no such field, did you mean 'precision'?"),
        ("steps = 2", "step = 2", "stage.0.step: there is no such field, did you mean 'steps'?"),
        ('llm = "lora"', 'lm = "lora"', "tune.lm: there is no such field, did you mean 'llm'?"),
        ('llm = "lora"', 'llm = "lorra"', "tune.llm: there is no 'lorra', did you mean 'lora'?"),
        ("llm = 1e-3", "lmm = 1e-3", "stage.0.rates.lmm: there is no 'lmm', did you mean 'llm'?"),
        ("answers", "answer", "stage.0.objective: there is no 'answer', did you mean 'answers'?"),
        ("seed = 1", "seed = 1\nprecision = 'bf61'", "precision: name: there is no 'bf61', did you mean 'bf16'?"),
        ("seed = 1", "seed = 1\nprecision = { nam = 'fp8' }", "precision: nam: there is no such field, did you mean"),
        ("llm = 1e-3", "llm = inf", "stage.0.rates.llm: Input should be a finite number, not inf"),
        ("llm = 1e-3", "llm = nan", "stage.0.rates.llm: Input should be"),
        ("llm = 1e-3", "llm = -1", "stage.0.rates.llm: Input should be greater than 0, not -1"),
        ("steps = 2", "steps = 2.5", "stage.0.steps: Input should be a valid integer"),
        ("seed = 1", "seed = true", "seed: Input should be a valid integer, not True"),
        ("name = \"mine\"", "", "name: is missing: write it down"),
        ("[[stage]]", "[stage]", "stage: Input should be a valid "),
        ("seed = 1", "seed = 1979-05-27", "seed: '1979-05-27' is text, not a number"),
        ("name = \"mine\"", 'name = "mi', "is not TOML"),
    ],
)  # fmt: skip
def test_one_sentence(tmp_path: Path, before: str, after: str, said: str) -> None:
    path = tmp_path / "mine.toml"
    assert before in SOUND
    path.write_text(SOUND.replace(before, after, 1))
    with pytest.raises(RecipeError) as refused:
        Recipe.read(path)
    message = str(refused.value)
    assert message.startswith((f"{path}: {said}", f"{path} {said}")), message
    assert "\n" not in message.split("(")[0]
    assert len(message) < 400


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"", b"[" * 5000, b"a = 1\n" * 2])
def test_files_that_are_no_recipe(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "mine.toml").write_bytes(content)
    with pytest.raises(RecipeError, match=r"mine\.toml"):
        Recipe.read(tmp_path / "mine.toml")


def test_the_sound_one_is_read(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(SOUND)
    assert Recipe.read(tmp_path / "mine.toml").stage[0].rates == {"llm": 1e-3}


@pytest.mark.parametrize("preset", ["NVILA-8B", "NVILA-15B"])
def test_a_budget_above_the_context(tmp_path: Path, preset: str) -> None:
    text = SOUND.replace("seed = 1", f'seed = 1\npreset = "{preset}"').replace('[tune]\nllm = "lora"\n', "")
    path = tmp_path / "mine.toml"
    path.write_text(text.replace("steps = 2", "steps = 2\nbudget = 32768"))
    Recipe.read(path)
    path.write_text(text.replace("steps = 2", "steps = 2\nbudget = 32769"))
    with pytest.raises(RecipeError, match=r"stage 'one': budget 32769 > the context of 32768 tokens: lower it"):
        Recipe.read(path)


def test_objectives_are_those_of_the_seam() -> None:
    assert set(get_args(Objective)) == OBJECTIVES.keys()
