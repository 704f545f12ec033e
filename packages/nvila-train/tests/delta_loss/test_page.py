"""The page stands alone, and the commands that lead to it."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from nvila_model import NVILA
from nvila_train.cli.app import app
from nvila_train.delta_loss.choices import DeltaLossError
from nvila_train.delta_loss.page.histogram import BARS, histogram
from nvila_train.delta_loss.page.review_page import SHOWN, examples
from nvila_train.delta_loss.score_table import Scores
from nvila_train.delta_loss.storage.records import Records
from typer.testing import CliRunner

VOID = {"meta", "img", "br", "rect", "line"}


class Tree(HTMLParser):
    """Fails unless every tag is closed in order; collects what refers to anything."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.cards = 0
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        found = dict(attrs)
        self.sources += [value for name, value in attrs if name in ("src", "href")]
        self.cards += "card" in (found.get("class") or "").split()
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def test_a_histogram_counts_everything():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0.5, 1, 500), [40.0, -30.0]])
    kept = values > 0.2
    drawn = histogram(values, kept, cut=0.2)
    pairs = [tuple(map(int, pair)) for pair in re.findall(r"(\d+) of (\d+) stay", drawn)]
    assert len(pairs) == BARS
    assert (sum(stays for stays, _ in pairs), sum(total for _, total in pairs)) == (kept.sum(), len(values))
    assert 'class="zero"' in drawn
    assert "cut 0.2" in drawn
    Tree(drawn)


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0], [-3.0, 5.0]])
def test_a_histogram_of_few_values(values):
    drawn = histogram(np.array(values), np.zeros(len(values), dtype=bool))
    assert sum(int(total) for total in re.findall(r"of (\d+) stay", drawn)) == len(values)
    assert "cut" not in drawn


def test_examples_are_from_both_ends_and_the_middle():
    delta = np.linspace(-10, 10, 101)
    high, low, middle = examples(delta).values()
    assert delta[high].tolist() == sorted(delta)[: -SHOWN - 1 : -1]
    assert delta[low].tolist() == sorted(delta)[:SHOWN]
    assert abs(delta[middle]).max() < 1
    assert sum(map(len, examples(delta[:4]).values())) == 4


@pytest.fixture
def scored(records: Records, models: tuple[NVILA, NVILA], tmp_path: Path, monkeypatch) -> Path:
    """Scores made by the command."""
    loaded = dict(zip(("large", "small"), models, strict=True)) | {"nano": models[0]}
    monkeypatch.setattr(NVILA, "from_pretrained", lambda name, **_: loaded[name])
    out = tmp_path / "scores.parquet"
    command = ["score", records.source.path, "--large", "large", "--small", "small", "--out", str(out), "--shard", "5"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "8 samples scored in" in result.stderr.replace("\n", " ")
    return out


@pytest.mark.parametrize("method", ["deltaloss", "random", "cluster"])
def test_the_commands_write_a_subset_and_a_page(records: Records, scored: Path, tmp_path: Path, method: str):
    out, page = tmp_path / "subset.jsonl", tmp_path / "page.html"
    command = ["prune", str(scored), "--keep", "0.5", "--method", method, "--out", str(out), "--page", str(page)]
    result = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    kept = out.read_bytes().splitlines()
    lines = Path(records.source.path).read_bytes().splitlines()
    places = [lines.index(line) for line in kept]
    assert places == sorted(places)
    sources = [records.source_of(json.loads(line)) for line in kept]
    assert (sources.count("text"), sources.count("mix")) == (2, 2)
    text = page.read_text()
    tree = Tree(text)
    assert tree.cards == len(records)
    assert len(tree.sources) == 1 + 2 + 4 + 1  # two pictures of one record, four frames of the clip
    assert all(source.startswith("data:image/jpeg;base64,") for source in tree.sources)
    assert text.count("<svg") == 2
    assert ("cut" in re.sub("<style>.*</style>", "", text, flags=re.DOTALL)) == (method == "deltaloss")


def test_what_is_written_is_shown_as_text_and_what_is_missing_said(
    records: Records, models, scored: Path, tmp_path: Path
):
    record = {
        "conversations": [{"from": "human", "value": "<b>&"}, {"from": "gpt", "value": "<script>"}],
        "source": "<i>",
    }
    path = tmp_path / "odd.jsonl"
    path.write_text(json.dumps(record) + "\n" + Path(records.source.path).read_text().splitlines()[1])
    out, page = tmp_path / "odd.parquet", tmp_path / "odd.html"
    run = CliRunner().invoke
    assert run(app, ["score", str(path), "--large", "large", "--small", "small", "--out", str(out)]).exit_code == 0
    (tmp_path / "wide.png").unlink()
    subset = str(tmp_path / "subset.jsonl")
    assert run(app, ["prune", str(out), "--keep", "1", "--out", subset, "--page", str(page)]).exit_code == 0
    text = page.read_text()
    Tree(text)
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert "no file at" in text


def test_data_that_changed_or_moved(records: Records, scored: Path, tmp_path: Path):
    run = CliRunner().invoke
    out = str(tmp_path / "subset.jsonl")
    path, moved = Path(records.source.path), tmp_path / "moved.jsonl"
    path.rename(moved)
    assert run(app, ["prune", str(scored), "--keep", "0.5", "--out", out, "--data", str(moved)]).exit_code == 0
    Tree((tmp_path / "subset.html").read_text())  # beside the subset, where no --page says otherwise
    path.write_bytes(moved.read_bytes() + b"{}\n")
    result = run(app, ["prune", str(scored), "--keep", "0.5", "--out", out])
    assert isinstance(result.exception, DeltaLossError)
    assert re.search(r"mix\.jsonl is not what was scored: pass the scored data with --data", str(result.exception))
    assert Scores.read(scored).facts["data"] == str(path)
