"""Timed tiles: the file that keeps them, who reads it, what is tried and what wins. No GPU: times are made up."""

import importlib.util
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed on this platform", allow_module_level=True)

from nvila_kernels.cpu.folder import FOLDER
from nvila_kernels.triton import timed_tiles, timing
from nvila_kernels.triton.tiles import ARCHITECTURES, INT4, MANY, SHARED_LIMIT, Tile, tile_of
from nvila_kernels.triton.timed_tiles import (
    TABLES,
    Problem,
    Timed,
    problem_of,
    read_tiles,
    tile_for,
    tiles_file,
    write_tiles,
)
from nvila_kernels.triton.timing import Attempt, candidates, fastest, problems, shared_bytes

GPU = torch.device("cuda", 0)
TILE = Tile(block_m=8, block_n=64, warps=4, stages=5, split=8)
DECODE = Problem(kernel="w4a16", most=8, k=1536, n=8960)
ENTRY = Timed(tile=TILE, seconds=1e-5, table_seconds=2e-5)


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A card of compute capability 8.9, and a cache folder of its own."""
    monkeypatch.setenv(FOLDER, str(tmp_path))
    for module in (timing, timed_tiles):
        monkeypatch.setattr(module, "architecture", lambda device: 89)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Stand-in")
    timed_tiles.timed_here.cache_clear()
    timed_tiles.tile_of_bucket.cache_clear()


def test_launches_read_what_was_written() -> None:
    table = tile_for("w4a16", GPU, 3, 1536, 8960)
    assert table == INT4[89][8]
    write_tiles(tiles_file(), {timed_tiles.card(GPU): {str(DECODE): ENTRY}})
    assert read_tiles(tiles_file()) == {timed_tiles.card(GPU): {str(DECODE): ENTRY}}
    assert tile_for("w4a16", GPU, 3, 1536, 8960) == TILE
    assert tile_for("w4a16", GPU, 3, 1500, 8960) == TILE  # padded to whole blocks of 128
    assert tile_for("w4a16", GPU, 9, 1536, 8960) == INT4[89][16]
    assert tile_for("w4a16", GPU, 3, 1536, 8961) == table
    assert tile_for("w8a8", GPU, 3, 1536, 8960) == tile_of(TABLES["w8a8"], 89, 3)
    assert tile_for("w4a16", torch.device("cpu"), 3, 1536, 8960) == table


@pytest.mark.parametrize(
    "other", ["Another, sm_89, triton {}", "Stand-in, sm_80, triton {}", "Stand-in, sm_89, triton 0.1"]
)
def test_entries_of_another_card_or_triton_are_kept_and_not_used(other: str) -> None:
    cards = {other.format(timed_tiles.version("triton")): {str(DECODE): ENTRY}}
    write_tiles(tiles_file(), cards)
    assert tile_for("w4a16", GPU, 3, 1536, 8960) == INT4[89][8]
    assert read_tiles(tiles_file()) == cards


def entry(**changes: Any) -> str:
    """A file with one entry, some numbers of its tile changed."""
    write_tiles(tiles_file(), {"card": {str(DECODE): ENTRY}})
    held = json.loads(tiles_file().read_text())
    held["cards"]["card"][str(DECODE)]["tile"].update(changes)
    return json.dumps(held)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: "{", "Expecting property name"),
        (lambda: "[]", "list indices must be integers"),
        (lambda: "{}", "it lacks 'format'"),
        (lambda: '{"format": "another"}', "its format is 'another', not 'nvila-kernels tiles, version 1'"),
        (lambda: entry(block_m=24), "block_m is 24: a tile needs a power of two of 8 to 256"),
        (lambda: entry(warps="4"), "warps is '4': a tile needs a power of two of 1 to 16"),
        (lambda: entry(stages=9), "stages is 9: a tile needs 1 to 8"),
        (lambda: entry(sides=3), "unexpected keyword argument 'sides'"),
        (lambda: entry().replace("w4a16", "w3a16"), "'w3a16 8x1536x8960' names no product"),
        (lambda: entry().replace("8x1536x", "8x1536"), "'w4a16 8x15368960' names no product"),
        (lambda: entry().replace("w4a16", "w8a8"), "w8a8 8x1536x8960 takes no tile of 8x64: 16 rows, 128 columns"),
        (lambda: entry().replace("table_seconds", "seconds"), "it lacks 'table_seconds'"),
    ],
)
def test_a_foreign_or_broken_file_is_refused(make: Any, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    tiles_file().write_text(make())
    timed_tiles.timed_here.cache_clear()
    with pytest.raises(ValueError, match="is no table of timed tiles") as refusal:
        read_tiles(tiles_file())
    assert reason in str(refusal.value)
    with caplog.at_level(logging.WARNING):
        assert tile_for("w4a16", GPU, 3, 1536, 8960) == INT4[89][8]
        assert tile_for("w4a16", GPU, 16, 1536, 8960) == INT4[89][16]
    (line,) = caplog.messages  # once a process
    assert line.endswith("the checked-in tiles are used")


@pytest.mark.parametrize("problem", [DECODE, Problem(kernel="w8a8", most=MANY, k=4352, n=1152)])
def test_a_problem_is_written_as_it_is_read(problem: Problem) -> None:
    assert problem_of(str(problem)) == problem


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_candidates_fit_and_begin_with_the_table(arch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "architecture", lambda device: arch)
    for problem in problems([("w4a16", 1536, 8960), ("w8a8", 4304, 1152), ("w4a16", 1536, 8960)], GPU):
        found = candidates(problem, arch)
        assert found[0] == tile_of(TABLES[problem.kernel], arch, problem.most)
        assert 8 <= len(found) == len(set(found)) <= 64
        for tile in found:
            assert shared_bytes(problem, tile) <= SHARED_LIMIT[arch]
            timed_tiles.check(problem, tile)


def test_problems_are_every_bucket_of_every_layer_once() -> None:
    found = problems([("w4a16", 1536, 8960), ("w8a8", 4304, 1152), ("w4a16", 1536, 8960)], GPU)
    assert [str(each) for each in found] == [
        *(f"w4a16 {most}x1536x8960" for most in ("8", "16", "32", "many")),
        *(f"w8a8 {most}x4352x1152" for most in ("64", "many")),
    ]


def test_the_fastest_that_ran_wins() -> None:
    slow, fast = (Tile(block_m=8, block_n=64, warps=warps, stages=3) for warps in (2, 4))
    tried = [
        Attempt(tile=TILE, refused="out of resource"),
        Attempt(tile=slow, seconds=2.0),
        Attempt(tile=fast, seconds=1.0),
    ]
    assert fastest(DECODE, tried) == Timed(tile=fast, seconds=1.0, table_seconds=None)
    first = [Attempt(tile=TILE, seconds=1.0), *tried[1:]]
    assert fastest(DECODE, first) == Timed(tile=TILE, seconds=1.0, table_seconds=1.0)  # no change without a gain
    with pytest.raises(
        ValueError, match=r"no tile of w4a16 8x1536x8960 runs on this GPU \(out of resource\): use the ref"
    ):
        fastest(DECODE, tried[:1])
