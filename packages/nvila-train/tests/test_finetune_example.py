"""``examples/finetune.md``, block by block: the adapter answers better than nano."""

import re
from pathlib import Path

import pytest
from nvila_model.cli.app import app as nvila
from nvila_train.cli.app import app
from typer.testing import CliRunner

PAGE = Path(__file__).parents[3] / "examples" / "finetune.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def follow(steps: int) -> tuple[int, int]:
    """Do what the page says, with so many steps, in the current folder; right answers before and after."""
    draw, measure = blocks("python")
    (recipe,) = blocks("toml")
    exec(compile(draw, "<draw>", "exec"), {"__name__": "page"})
    Path("parcels.toml").write_text(re.sub(r"steps = \d+", f"steps = {steps}", recipe))
    done = CliRunner().invoke(app, ["run", "parcels.toml", "--out", "runs/parcels"])
    assert done.exit_code == 0, done.output
    found: dict[str, int] = {}
    exec(compile(measure, "<measure>", "exec"), found)
    return found["before"], found["after"]


def test_a_short_run_answers_better(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before, after = follow(25)
    assert after > before
    words = ["ask", "parcels/200.png", "Which bin?", "--adapter", "runs/parcels/adapter", "--max-new-tokens", "4"]
    told = CliRunner().invoke(nvila, words)
    assert told.exit_code == 0, told.output
    refused = CliRunner().invoke(nvila, [*words[:3], "--adapter", "nowhere"])
    assert refused.exit_code == 2
    assert "nowhere" in refused.output


@pytest.mark.slow
def test_the_page_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (recipe,) = blocks("toml")
    steps = re.search(r"steps = (\d+)", recipe)
    assert steps is not None
    before, after = follow(int(steps[1]))
    assert before <= 10
    assert after >= 34, "of forty"
