"""``nvila quantize``: streamed, stopped, resumed, calibrated, refused."""

import json
import subprocess
import sys
from pathlib import Path

import nvila_model
import pytest
import torch
from nvila_kernels.quantization import quantize_int4
from nvila_model import NVILA
from nvila_model.checkpoint.quantized import quantized_layers
from nvila_model.cli.app import app
from nvila_model.quantization.blocks import quantize_model, usual_policy
from nvila_model.quantization.streaming import quantize_checkpoint
from PIL import Image as PILImage
from safetensors.torch import load_file
from typer.testing import CliRunner


def stored_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return NVILA.from_pretrained(folder, optimize=False).state_dict()


def nvila(*words: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(word) for word in words])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def streamed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streamed") / "nano"
    assert nvila("quantize", "nano", folder)[0] == 0
    return folder


def test_streaming_equals_quantizing_the_model(streamed: Path) -> None:
    model = NVILA.from_pretrained("nano")
    quantize_model(model)
    mine, theirs = model.state_dict(), NVILA.from_pretrained(str(streamed), optimize=False).state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_the_function_writes_what_the_command_does(streamed: Path, tmp_path: Path) -> None:
    lines = nvila_model.quantize("nano", tmp_path / "called")
    assert lines
    files = sorted(file.relative_to(streamed) for file in streamed.rglob("*") if file.is_file())
    assert all((tmp_path / "called" / file).read_bytes() == (streamed / file).read_bytes() for file in files)
    with pytest.raises(ValueError, match="leaves nothing to quantize: choose 'w4a16' or 'w8a8'"):
        nvila_model.quantize("nano", tmp_path / "none", llm=None, vision=None)


def test_it_answers(streamed: Path, tmp_path: Path) -> None:
    PILImage.new("RGB", (80, 50), "red").save(tmp_path / "red.png")
    code, out, _ = nvila("ask", tmp_path / "red.png", "What is there?", "--model", streamed, "--json")
    assert code == 0
    assert json.loads(out)["new_tokens"] > 0


def test_many_shards_hold_what_one_does(streamed: Path, tmp_path: Path) -> None:
    from nvila_model.checkpoint.hub import NANO

    target = tmp_path / "many"
    lines = quantize_checkpoint(NANO, target, shard_bytes=400_000)
    assert len(list((target / "llm").glob("model-*.safetensors"))) > 1
    whole, pieces = stored_tensors(streamed), stored_tensors(target)
    assert all(torch.equal(whole[name], pieces[name]) for name in whole)
    assert all(0 < line.weight_error < 0.15 for line in lines)


class StopError(Exception):
    """Stands for a kill."""


def test_a_run_that_was_stopped_goes_on_and_is_never_half_there(streamed: Path, tmp_path: Path) -> None:
    from nvila_model.checkpoint.hub import NANO

    target = tmp_path / "stopped"
    reached = []

    def stop(done: int, total: int) -> None:
        reached.append(done)
        if done > 0.6 * total:
            raise StopError

    with pytest.raises(StopError):
        quantize_checkpoint(NANO, target, shard_bytes=400_000, step=stop)
    assert not target.exists()
    (work,) = tmp_path.iterdir()
    assert not (work / "config.json").exists()
    finished = {file: file.stat().st_mtime_ns for file in work.rglob("model*.safetensors")}
    assert finished

    again: list[int] = []
    lines = quantize_checkpoint(NANO, target, shard_bytes=400_000, step=lambda done, total: again.append(done))
    assert len(again) < len(reached) + 40
    assert again[0] > reached[0]
    assert [path.name for path in tmp_path.iterdir()] == ["stopped"]
    for file, time in finished.items():
        assert (target / file.relative_to(work)).stat().st_mtime_ns == time
    assert len(lines) == len(quantize_checkpoint(NANO, tmp_path / "other", shard_bytes=400_000))
    whole, resumed = stored_tensors(streamed), stored_tensors(target)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_another_request_does_not_use_what_the_first_left(tmp_path: Path) -> None:
    from nvila_model.checkpoint.hub import NANO

    def stop(done: int, total: int) -> None:
        if done > 0.6 * total:
            raise StopError

    with pytest.raises(StopError):
        quantize_checkpoint(NANO, tmp_path / "a", shard_bytes=400_000, step=stop)
    quantize_checkpoint(NANO, tmp_path / "a", shard_bytes=400_000, policy=usual_policy(group_size=32))
    layer = NVILA.from_pretrained(str(tmp_path / "a"), optimize=False).llm.layers[0].mlp.up_proj
    weight = NVILA.from_pretrained("nano").llm.layers[0].mlp.up_proj.weight
    expected = quantize_int4(weight.detach(), group_size=32)
    assert torch.equal(layer.codes().codes, expected.codes)
    assert torch.equal(layer.codes().scale, expected.scale)


def test_parts_can_be_left_alone(tmp_path: Path) -> None:
    assert nvila("quantize", "nano", tmp_path / "v", "--llm", "none")[0] == 0
    names = quantized_layers(NVILA.from_pretrained(str(tmp_path / "v"), optimize=False))
    assert names
    assert all(name.startswith("vision.") for name in names)
    assert "quantization_config" not in json.loads((tmp_path / "v" / "llm" / "config.json").read_text())


def test_the_report_and_json(tmp_path: Path) -> None:
    code, out, _ = nvila("quantize", "nano", tmp_path / "r", "--report")
    assert code == 0
    assert "llm.layers.0.mlp.up_proj" in out
    code, out, _ = nvila("quantize", "nano", tmp_path / "j", "--json")
    told = json.loads(out)
    assert told["bytes_after"] < 0.6 * told["bytes_before"]
    assert {line["scheme"] for line in told["layers"]} == {"w4a16 g128", "w8a8"}


def test_calibration_chooses_scales(streamed: Path, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = []
    for number in range(3):
        pixels = torch.randint(256, (60, 90, 3), generator=generator, dtype=torch.uint8).numpy()
        PILImage.fromarray(pixels).save(tmp_path / f"{number}.png")
        talk = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "noise"}]
        rows.append(json.dumps({"image": f"{number}.png", "conversations": talk}))
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(rows))
    code, out, _ = nvila("quantize", "nano", tmp_path / "c", "--calibrate", data, "--samples", 2, "--json")
    assert code == 0
    assert all(line["output_error"] > 0 for line in json.loads(out)["layers"])
    mine, plain = (load_file(folder / "llm" / "model.safetensors") for folder in (tmp_path / "c", streamed))
    assert mine.keys() == plain.keys()
    assert any(not torch.equal(mine[name], plain[name]) for name in mine)
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nano", "{there}"], "exists: choose another folder"),
        (["{streamed}", "{new}"], "is quantized already"),
        (["nano", "{new}", "--llm", "none", "--vision", "none"], "leaves nothing to quantize"),
        (["nano", "{new}", "--group", "48"], "48"),
        (["nano", "{new}", "--calibrate", "{rows}"], "row 2 is not JSON"),
        (["nowhere", "{new}"], "no model 'nowhere'"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    words: list[str], message: str, streamed: Path, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "rows.jsonl").write_text('{"conversations": []}\n{"half\n')
    places = {
        "there": tmp_path / "there", "new": tmp_path / "new", "streamed": streamed, "rows": tmp_path / "rows.jsonl"
    }  # fmt: skip
    code, _, err = nvila("quantize", *[word.format(**places) for word in words])
    assert code == 2
    assert message in err
    assert "Traceback" not in err
    assert not (tmp_path / "new").exists()


PEAK = """
import resource, sys
from pathlib import Path
from nvila_model.quantization.streaming import quantize_checkpoint
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
quantize_checkpoint(Path(sys.argv[1]), Path(sys.argv[2]), shard_bytes=40_000_000)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_the_model_is_never_held(make_model, tmp_path: Path) -> None:
    """A checkpoint of a few hundred megabytes takes a fraction of them."""
    big = {
        "model_type": "qwen2", "vocab_size": 259, "hidden_size": 1024, "intermediate_size": 4096,
        "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 8,
        "max_position_embeddings": 512, "tie_word_embeddings": True,
    }  # fmt: skip
    make_model(llm=big).to(torch.bfloat16).save_pretrained(str(tmp_path / "big"))
    size = sum(file.stat().st_size for file in (tmp_path / "big").rglob("*.safetensors"))
    words = [sys.executable, "-c", PEAK, str(tmp_path / "big"), str(tmp_path / "small")]
    peak = int(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    assert size > 250e6
    assert peak < 0.6 * size
