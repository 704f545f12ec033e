"""``nvila bench``, and a whole model on the kernels that it measured."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from nvila_kernels.cpu import PackedLinear
from nvila_kernels.cpu.folder import FOLDER
from nvila_model import NVILA, Image, Sampling
from nvila_model.cli.app import app
from nvila_model.cpu import optimize
from nvila_model.quantization.blocks import quantize_model
from typer.testing import CliRunner


def nvila(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["bench", *words])
    return result.exit_code, result.stdout, result.stderr


def test_every_candidate_is_shown_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cpu.json"
    monkeypatch.setenv(FOLDER, str(tmp_path))
    code, out, _ = nvila("--backends", "--shape", "1x128x32", "--shape", "40x128x32", "--json")
    assert code == 0
    told = json.loads(out)
    assert told["cache"] == str(cache)
    assert [row["shape"] for row in told["shapes"]] == ["1x128x32 w4 g128", "40x128x32 w4 g128"]
    assert [row["measured"] for row in told["shapes"]] == ["1x128x32 w4 g128", "128x128x32 w4 g128"]
    byte_each = round((128 + 4) / (128 * 0.5 + 4), 3)  # a byte a weight and a scale a row, over 4 bits
    for row in told["shapes"]:
        chosen = next(each for each in row["candidates"] if each["name"] == row["chosen"])
        assert chosen["refused"] is None
        assert chosen["bytes_ratio"] <= byte_each
        rivals = [c["seconds"] for c in row["candidates"] if not c["refused"] and c["bytes_ratio"] <= byte_each]
        assert chosen["seconds"] == min(rivals)
    again = json.loads(nvila("--backends", "--shape", "1x128x32", "--json")[1])
    assert again["shapes"] == told["shapes"][:1]
    code, out, _ = nvila("--backends", "--shape", "1x128x32", "--bits", "8")
    assert "oneDNN int8" in out
    assert "chosen" in out
    assert nvila("--clear")[0] == 0
    assert not cache.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "nothing to do: give --backends"),
        (["--backends", "--shape", "12x34"], "'12x34' is not a shape: give ROWSxKxN"),
        (["--backends", "--bits", "5"], "--bits 5 is not a width of weights here: give 4 or 8"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(words: list[str], message: str) -> None:
    code, _, err = nvila(*words)
    assert code == 2
    assert message in err


def test_an_optimized_model_says_nearly_the_same() -> None:
    model = NVILA.from_pretrained("nano")
    quantize_model(model)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
    talk = [{"role": "user", "content": [Image(pixels), "What is there?"]}]
    inputs = model.needed_processor()(talk)
    with torch.inference_mode():
        before = model(inputs).logits[0]
        done = optimize(model)
        after = model(inputs).logits[0]
    assert all(isinstance(model.get_submodule(each.name), PackedLinear) for each in done)
    assert "llm.lm_head.rough" in [each.name for each in done]
    with pytest.raises(ValueError, match="the model was optimized before: load it again to choose other kernels"):
        optimize(model)
    assert torch.nn.functional.cosine_similarity(before.flatten(), after.flatten(), dim=0) > 0.99
    assert model.generate(talk, sampling=Sampling(max_new_tokens=3))
