"""Nano's recipe from nothing to a page, by the commands of its documentation: a step a stage, a smaller model."""

import re
from pathlib import Path

import pytest
from nvila_train import nano_recipes
from nvila_train.cli.app import app
from nvila_train.recipe import Recipe
from typer.testing import CliRunner

SHIPPED = Path(__file__).parent.parent / "src" / "nvila_train" / "recipes" / "nano.toml"

SMALLER = {r"^steps = \d+": "steps = 1", r"^samples = \d+": "samples = 2", r"^width = \d+": "width = 32",
           r"^layers = \d+": "layers = 1", r"^mlp_width = \d+": "mlp_width = 48"}  # fmt: skip


@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard")
@pytest.mark.filterwarnings("ignore:.*torch.utils.tensorboard.*")  # its own, about what it imports
def test_every_stage_and_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = SHIPPED.read_text()
    for pattern, other in SMALLER.items():
        text = re.sub(pattern, other, text, flags=re.MULTILINE)
    (tmp_path / "nano.toml").write_text(text)
    recipe = Recipe.read(tmp_path / "nano.toml")
    monkeypatch.setattr(nano_recipes, "VOCABULARY_SCENES", 150)
    out = tmp_path / "run"

    def call(*words: str) -> str:
        result = CliRunner().invoke(app, list(words), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.output

    dry = call("run", str(tmp_path / "nano.toml"), "--dry-run")
    call("run", str(tmp_path / "nano.toml"), "--out", str(out), "--tensorboard", "--device", "cpu")
    call("report", str(out), "--samples", "1")
    page = (out / "report.html").read_text()
    for number, stage in enumerate(recipe.stage, start=1):
        assert stage.name[:12] in dry
        assert (out / f"{number}-{stage.name}" / "state" / "00000001" / ".metadata").is_file()
        assert stage.name in page
    assert page.count("<figure>") == 4, "an answer of each kind, with its picture"
    assert page.count("data:image/png;base64,") == 4
    assert list((out / "tensorboard").glob("events.*"))
    assert (out / "log.csv").read_text().count("\n") == len(recipe.stage) + 1
