"""``nvila bench --tune`` and ``--tiles``, with a stand-in for the card and for the clock."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed on this platform", allow_module_level=True)

from nvila_kernels.cpu.folder import FOLDER
from nvila_kernels.triton import timed_tiles, timing
from nvila_kernels.triton.timed_tiles import Problem
from nvila_model.cli.app import app
from nvila_model.cli.kernel_tiles import layers
from typer.testing import CliRunner

LITE_2B = {
    ("w4a16", 1536, 1536),
    ("w4a16", 1536, 256),
    ("w4a16", 1536, 8960),
    ("w4a16", 8960, 1536),
    ("w8a8", 1152, 3456),
    ("w8a8", 1152, 1152),
    ("w8a8", 1152, 4304),
    ("w8a8", 4304, 1152),
}
"""Qwen2-1.5B's and SigLIP so400m's layers, from their published sizes."""


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    return tmp_path / "tiles.json"


def nvila(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["bench", *words])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def test_without_a_card_nothing_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, out, err = nvila("--tune", "NVILA-Lite-2B")
    assert code == 2
    assert out == ""
    assert "--tune times GPU kernels, and no CUDA device is here: run it on the machine with the card" in err


def test_the_layers_of_a_preset_and_of_a_folder() -> None:
    assert set(layers("NVILA-Lite-2B")) == LITE_2B
    assert {kernel for kernel, _, _ in layers("nano")} == {"w4a16", "w8a8"}


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> str:
    """A card on which a candidate takes as many microseconds as its place in the list, from the last."""

    def attempts(problem: Problem, device: torch.device) -> list[timing.Attempt]:
        found = timing.candidates(problem, 89)
        return [timing.Attempt(tile=tile, seconds=(len(found) - i) * 1e-6) for i, tile in enumerate(found)]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(timing, "architecture", lambda device: 89)
    monkeypatch.setattr("nvila_kernels.triton.attempts", attempts)
    monkeypatch.setattr("nvila_kernels.triton.card", lambda device: "Stand-in")
    return "Stand-in"


def test_the_fastest_tiles_are_kept_and_shown(card: str, cache: Path) -> None:
    code, out, _ = nvila("--tune", "NVILA-Lite-2B", "--json")
    assert code == 0
    told: dict[str, Any] = json.loads(out)
    assert told["file"] == str(cache)
    assert len(told["timed"][card]) == 4 * 4 + 4 * 2
    kept = timed_tiles.read_tiles(cache)[card]
    for text, entry in kept.items():
        assert entry.tile == timing.candidates(timed_tiles.problem_of(text), 89)[-1]
        assert entry.seconds == 1e-6
    code, out, _ = nvila("--tiles")
    assert code == 0
    assert "Stand-in" in out
    assert "w4a16 8x1536x8960" in out
    assert "128x128x64, 4 warps, 3 stages, two halves" in out
    assert nvila("--clear")[0] == 0
    assert not cache.exists()
    assert "no tile was timed yet" in nvila("--tiles")[1]


def test_a_foreign_file_is_neither_used_nor_replaced(card: str, cache: Path) -> None:
    cache.write_text("[]")
    for words in (["--tune", "NVILA-Lite-2B"], ["--tiles"]):
        code, _, err = nvila(*words)
        assert code == 2
        assert "is no table of timed tiles" in err
    assert cache.read_text() == "[]"


def test_one_thing_at_a_time() -> None:
    code, _, err = nvila("--tiles", "--backends")
    assert code == 2
    assert "--backends, --tune and --tiles exclude each other: give one of them" in err


def test_an_unknown_model() -> None:
    with pytest.raises(ValueError, match="no preset 'NVILA-9B'"):
        layers("NVILA-9B")
