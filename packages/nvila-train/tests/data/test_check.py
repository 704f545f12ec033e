"""``nvila-train check`` names every fault by row and field, counts as the model does, and draws samples."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from nvila_train.cli.app import app
from nvila_train.data.checks.contact_sheet import contact_sheet
from nvila_train.data.checks.row_faults import quantiles
from nvila_train.trainee import Trainee
from PIL import Image
from typer.testing import CliRunner

ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def model(trainee: Trainee, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    trainee.model.save_pretrained(str(folder))
    return folder


@pytest.fixture
def faulty(write: Callable[..., Path], records: list[dict[str, Any]]) -> Path:
    def talk(question: str, *answers: str, **media: Any) -> dict[str, Any]:
        turns = [{"from": "human", "value": question}, *({"from": "gpt", "value": answer} for answer in answers)]
        return {"conversations": turns, **media}

    path = write(
        [
            records[1],
            talk("<image>Hi", "Ho", image="none.png"),
            talk("<image>Hi", "Ho", images=["wide.png", "cut.png"]),
            talk("Hi", " "),
            {"conversations": [{"from": "gpt", "value": "Ho"}]},
            talk("Hi", "Ho", images=["tiny.png", "note.png"]),
            talk("<video>Hi", "Ho", video="note.png"),
        ]
    )
    path.write_text(path.read_text() + "{\n")
    return path


FAULTS = [
    (2, "image", "no file at"),
    (3, "image", "1 <image> in what human says, but 2 images"),
    (3, "image[1]", "cut short or corrupt"),
    (4, "conversations[1].value", "the answer is empty"),
    (5, "conversations", "no turn is from human"),
    (6, "image[1]", "is not an image"),
    (7, "model", "note.png"),
    (8, "row", "is not JSON"),
]


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, ["check", *map(str, arguments)])


def test_every_fault_is_named(faulty: Path, pictures: Path, model: Path) -> None:
    result = invoke(faulty, "--media", pictures, "--model", model, "--json")
    assert result.exit_code == 1, result.output
    found = json.loads(result.stdout)
    assert [(fault["row"], fault["field"]) for fault in found["faults"]] == [(row, field) for row, field, _ in FAULTS]
    assert all(said in fault["problem"] for fault, (_, _, said) in zip(found["faults"], FAULTS, strict=True))
    assert (found["rows"], found["faulty"], found["images"], found["answers"]) == (8, 7, 2, 2)


def test_faults_for_people(faulty: Path, pictures: Path, model: Path) -> None:
    result = invoke(faulty, "--media", pictures, "--model", model)
    assert result.exit_code == 1
    assert "8 rows, 7 faulty; in the 1 sound ones 2 images, 0 videos, 2 answers" in result.stdout
    assert "row 4: conversations[1].value: the answer is empty" in result.stdout


def test_counts_are_the_models(
    trainee: Trainee, model: Path, write: Callable[..., Path], records: list[dict[str, Any]], pictures: Path
) -> None:
    """Against what the network is really given, and its labels."""
    from nvila_model.inputs import read_llava
    from nvila_train.data.record import as_record

    found = json.loads(invoke(write(records), "--media", pictures, "--model", model, "--json").stdout)
    lengths, learnt = [], []
    for record in records:
        inputs = trainee.processor.for_training(read_llava(as_record(record), folder=pictures))
        fused = trainee.model.embed(inputs, side="right")
        assert fused.labels is not None
        lengths.append(fused.lengths[0])
        learnt.append(int((fused.labels != -100).sum()))
    assert found["tokens"] == quantiles(lengths) | {"total": sum(lengths)}
    assert found["learnt"]["total"] == sum(learnt)
    assert found["context"] == 512
    assert found["beyond_context"] == 0
    assert (
        json.loads(invoke(write(records), "--media", pictures, "--model", model, "--json", "--limit", 2).stdout)["rows"]
        == 2
    )


def test_quantiles_by_hand() -> None:
    assert quantiles([5, 1, 4, 2, 3]) == {"mean": 3.0, "least": 1, "median": 3, "p90": 5, "p99": 5, "most": 5}
    assert quantiles([*range(1, 201)]) == {
        "mean": 100.5,
        "least": 1,
        "median": 100,
        "p90": 180,
        "p99": 198,
        "most": 200,
    }
    assert quantiles([]) == {}


def test_the_example_is_sound_and_drawn(tmp_path: Path, model: Path) -> None:
    if not (ROOT / "examples" / "receipt.png").is_file():
        pytest.skip("the drawn pictures are not in this checkout")
    path = ROOT / "examples" / "conversations.jsonl"
    result = invoke(path, "--model", model, "--sheet", tmp_path / "sheet.png", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert (found["rows"], found["images"], found["videos"], found["answers"]) == (4, 3, 1, 5)
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.size == (4 * 252 + 12, 348 + 12)
    cells = [sheet.crop((12 + 252 * place, 12, 252 + 252 * place, 252)) for place in range(4)]
    assert all(len(cell.getcolors(1 << 16) or []) > 10 for cell in cells[:3])


def test_a_sheet_of_nothing() -> None:
    with pytest.raises(ValueError, match="no sound sample to draw"):
        contact_sheet([])
