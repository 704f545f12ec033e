"""Tuning with the interpreter for a GPU and a stand-in for the clock: every candidate is run and compared."""

import pytest
import torch
from nvila_kernels.triton import timed_tiles, timing
from nvila_kernels.triton.timed_tiles import Problem
from triton.runtime.errors import OutOfResources

CPU = torch.device("cpu")
PROBLEMS = [
    Problem(kernel="w4a16", most=8, k=512, n=200),
    Problem(kernel="w4a16", most=32, k=128, n=70),
    Problem(kernel="w8a8", most=64, k=256, n=130),
]


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def check_every_candidate_agrees_with_the_reference(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    some = timing.candidates(problem, 80)[::5]
    monkeypatch.setattr(timing, "candidates", lambda problem, arch: some)
    seconds = iter([4.0, 2.0, *range(10, 99)])
    tried = timing.attempts(problem, CPU, lambda run: next(seconds))
    assert [each.refused for each in tried] == [None] * len(some)
    found = timing.fastest(problem, tried)
    assert found == timed_tiles.Timed(tile=some[1], seconds=2.0, table_seconds=4.0)


def check_a_wrong_or_failing_candidate_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = PROBLEMS[1]
    wrong, failing, right = timing.candidates(problem, 80)[:3]
    product = timing.multiply_int4

    def sabotaged(*arguments: object) -> torch.Tensor:
        if arguments[-1] == failing:
            raise OutOfResources(200000, 101376, "shared memory")
        return product(*arguments) * (1.1 if arguments[-1] == wrong else 1)

    monkeypatch.setattr(timing, "multiply_int4", sabotaged)
    monkeypatch.setattr(timing, "candidates", lambda problem, arch: [wrong, failing, right])
    tried = timing.attempts(problem, CPU, lambda run: 1.0)
    assert [each.seconds for each in tried] == [None, None, 1.0]
    assert tried[0].refused == "its error of 0.1 exceeds 0.005"
    assert str(tried[1].refused).startswith("out of resource: shared memory, Required: 200000")


def check_a_tile_of_fewer_rows_and_more_splits_than_there_are_blocks() -> None:
    problem = Problem(kernel="w4a16", most=16, k=384, n=100)
    run, exact = timing.operands(problem, CPU)
    tile = timed_tiles.Tile(block_m=8, block_n=64, warps=4, stages=3, split=8)
    assert timing.attempt(run, exact, tile, lambda run: 1.0).seconds == 1.0
