"""The page of a run, what is shown meanwhile, and the dry run of every shipped recipe."""

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from nvila_train.cli.app import app
from nvila_train.cli.progress import Display, numbers_of
from nvila_train.curves import curve, ticks
from nvila_train.dry_run import dry_run
from nvila_train.recipe import Recipe
from nvila_train.recipe_errors import RecipeError
from nvila_train.report import ReportError, Shown, write_report
from nvila_train.trainer.log import records, rewind
from rich.console import Console
from typer.testing import CliRunner

SHIPPED = Path(__file__).parent.parent / "src" / "nvila_train" / "recipes"

OLD = {"stage": "pretrain-vision", "step": 10, "loss": 14.5, "read": 0.003, "rate": 6.17e-05, "seconds": 1.6}
NEW = {**OLD, "step": 20, "loss": 12.25, "seconds": 3.6, "tokens_per_second": 1234.5, "memory": 0.5}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose first stage was begun by an earlier version, with a last line cut short."""
    for name, lines in (("1-first", [OLD, NEW]), ("10-third", [OLD]), ("2-second", [OLD])):
        (tmp_path / name).mkdir()
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / name / "log.jsonl").write_text(text + '{"stage": "pretr')
    return tmp_path


def test_the_page_holds_all_it_shows(run: Path):
    shown = Shown(kind="charts", question="How <much>?", expected="7", answer="8", png=b"\x89PNG")
    page = write_report(run, [shown]).read_text()
    HTMLParser().feed(page)
    assert re.findall("<h2>([^<]+)</h2>", page) == ["1-first", "2-second", "10-third", "Answers"]
    assert not re.findall(r'(?:src|href)="(?!data:)', page), "nothing is fetched"
    assert "How &lt;much&gt;?" in page
    assert '<b class="wrong">8</b><br>expected: 7' in page
    assert "0 of 1 right" in page
    assert "tokens a second" in page
    rows = list(csv.DictReader(io.StringIO((run / "log.csv").read_text())))
    assert [row["step"] for row in rows] == ["10", "20", "10", "10"]
    assert [row["steps_per_second"] for row in rows] == ["6.25", "5.0", "6.25", "6.25"]
    assert rows[0]["memory"] == ""


def test_the_command_writes_the_page(run: Path):
    result = CliRunner().invoke(app, ["report", str(run), "--samples", "0"])
    assert result.exit_code == 0, result.output
    assert Path(result.stdout.replace("\n", "")) == run / "report.html"


def test_a_folder_without_a_run(tmp_path: Path):
    with pytest.raises(ReportError, match=r"has no stage with a log.jsonl"):
        write_report(tmp_path)


def test_a_curve_is_drawn_to_scale():
    drawn = ElementTree.fromstring(curve("a < b", [0, 50, 100], [1.0, 3.0, 2.0]))
    (line,) = (each for each in drawn if each.tag == "polyline")
    points = [tuple(float(part) for part in pair.split(",")) for pair in line.attrib["points"].split()]
    across, up = [x for x, _ in points], [y for _, y in points]
    assert across[1] == pytest.approx((across[0] + across[2]) / 2)
    assert up[2] == pytest.approx((up[0] + up[1]) / 2)
    assert up[1] < up[0], "higher values are higher up"


def test_a_curve_leaves_out_what_is_not_finite():
    assert curve("loss", [1, 2, 3], [1.0, float("nan"), 2.0]).count(",") == 2
    with pytest.raises(ValueError, match="curve 'loss' has no finite value"):
        curve("loss", [1], [float("inf")])


@pytest.mark.parametrize(("low", "high"), [(0, 97), (-3, 4), (0.00123, 0.00124), (5, 5), (0, 0), (1e6, 3e6)])
def test_ticks_are_round_and_hold_the_range(low: float, high: float):
    found = ticks(low, high)
    assert found[0] <= low <= high <= found[-1]
    assert 2 <= len(found) <= 8
    assert all(len(f"{value:g}") <= 9 for value in found)


def test_a_rewound_log_forgets_later_steps(run: Path):
    rewind(run / "1-first", 10)
    assert records(run / "1-first") == [OLD]


def test_progress_without_a_terminal_is_plain_lines():
    recipe = Recipe.read(SHIPPED / "nano.toml")
    steps = recipe.stage[0].steps
    file = io.StringIO()
    with Display(Console(file=file), recipe) as display:
        display({**NEW, "mfu": 0.41})
    assert file.getvalue() == (
        f"pretrain-vision 20/{steps}: loss 12.25, read 0.003, rate 6.17e-05, 1,234 tokens/s, MFU 41%, 0.5 GiB (4 s)\n"
    )
    assert numbers_of(OLD) == "loss 14.5, read 0.003, rate 6.17e-05"


def test_progress_in_a_terminal_is_one_line():
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=160)
    recipe = Recipe.read(SHIPPED / "nano.toml")
    with Display(console, recipe) as display:
        display(OLD)
        display(NEW)
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue()).split("\r")[-1]
    assert f"20/{recipe.stage[0].steps}" in last
    assert "1,234 tokens/s" in last


@pytest.mark.parametrize(
    "name",
    ["nano", *(pytest.param(path.stem, marks=pytest.mark.slow) for path in sorted(SHIPPED.glob("nvila-*.toml")))],
)
def test_every_recipe_runs_dry(name: str):
    recipe = Recipe.read(SHIPPED / f"{name}.toml")
    stages = list(dry_run(recipe))
    assert [stage.name for stage in stages] == [stage.name for stage in recipe.stage]
    for stage, entry in zip(stages, recipe.stage, strict=True):
        everything = {"vision", "projector", "llm"} <= set(entry.rates)
        assert 0 < stage.trained <= stage.parameters or name == "nano"
        if recipe.tune is not None:
            assert stage.trained < 0.02 * stage.parameters
        else:
            assert (stage.trained == stage.parameters) == everything or name == "nano"


def test_the_five_stages_of_the_paper():
    """Parts and rates as in the paper's table, in every recipe of a published model."""
    expected = [
        ({"projector"}, 1e-3),
        ({"vision", "projector"}, 5e-5),
        ({"projector", "llm"}, 5e-5),
        ({"vision", "projector", "llm"}, 2e-5),
        ({"vision", "projector", "llm"}, 2e-5),
    ]
    paths = [path for path in sorted(SHIPPED.glob("nvila-*.toml")) if Recipe.read(path).tune is None]
    assert len(paths) == 5
    for path in paths:
        stages = Recipe.read(path).stage
        assert [(set(stage.rates), *set(stage.rates.values())) for stage in stages] == expected, path.stem
        assert {stage.samples for stage in stages} == {2048}


def test_a_dry_run_needs_sizes(tmp_path: Path):
    text = (SHIPPED / "nvila-8b.toml").read_text()
    (tmp_path / "bare.toml").write_text(text.replace('preset = "NVILA-8B"\n', ""))
    with pytest.raises(RecipeError, match="name the preset of its sizes to dry-run it"):
        list(dry_run(Recipe.read(tmp_path / "bare.toml")))
    (tmp_path / "odd.toml").write_text(text.replace('preset = "NVILA-8B"', 'preset = "NVILA-9B"'))
    with pytest.raises(RecipeError, match="no preset 'NVILA-9B': choose from NVILA-Lite-2B"):
        Recipe.read(tmp_path / "odd.toml")
