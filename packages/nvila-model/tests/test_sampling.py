"""Choosing tokens: hand-computed tables and laws."""

import pytest
import torch
from nvila_model.generation.sampling import Sampler, Sampling, distribution, penalized

SCORES = torch.log(torch.tensor([[0.5, 0.25, 0.15, 0.1]]))


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(temperature=1.0), [0.5, 0.25, 0.15, 0.1]),
        (Sampling(temperature=1.0, top_k=2), [2 / 3, 1 / 3, 0, 0]),
        (Sampling(temperature=1.0, top_p=0.5), [1, 0, 0, 0]),
        (Sampling(temperature=1.0, top_p=0.6), [0.5, 0.25, 0, 0]),
        (Sampling(temperature=0.5), [0.25, 0.0625, 0.0225, 0.01]),
    ],
)
def test_distributions_by_hand(sampling: Sampling, expected: list[float]):
    wanted = torch.tensor([expected]) / sum(expected)
    found = distribution(SCORES, sampling)
    torch.testing.assert_close(found / found.sum(), wanted)


def test_repetition_penalty_pushes_seen_tokens_down_on_both_sides_of_zero():
    scores, seen = torch.tensor([[2.0, -2.0, 2.0, -2.0]]), torch.tensor([[True, True, False, False]])
    assert penalized(scores, seen, 2.0).tolist() == [[1.0, -4.0, 2.0, -2.0]]


def test_greedy_with_penalty_moves_on():
    sampler = Sampler(Sampling(repetition_penalty=2.0), rows=1, vocabulary=3, device=torch.device("cpu"))
    scores = torch.tensor([[3.0, 2.0, 1.0]])
    assert [int(sampler(scores)) for _ in range(2)] == [0, 1]


def test_a_seed_repeats_and_rows_draw_as_alone():
    scores = torch.randn(2, 50)
    sampling = Sampling(temperature=1.5, seed=7)

    def draws(rows: torch.Tensor) -> list[list[int]]:
        sampler = Sampler(sampling, rows=len(rows), vocabulary=50, device=torch.device("cpu"))
        return torch.stack([sampler(rows) for _ in range(20)], dim=1).tolist()

    both = draws(scores)
    assert both == draws(scores)
    assert both == [draws(scores[:1])[0], draws(scores[1:])[0]]
    assert len(set(both[0])) > 3


def test_frequencies_follow_the_distribution():
    sampler = Sampler(Sampling(temperature=1.0, seed=0), rows=1, vocabulary=4, device=torch.device("cpu"))
    counts = torch.bincount(torch.tensor([int(sampler(SCORES)) for _ in range(4000)]), minlength=4) / 4000
    torch.testing.assert_close(counts, SCORES.exp()[0], atol=0.03, rtol=0)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0: it must be at least 1"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"top_p": 0.0}, "top_p is 0.0: it must be above 0 and at most 1"),
        ({"top_k": -1}, "top_k is -1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"stop": ("",)}, "stop is"),
        ({"stop": "end"}, "stop is 'end': it must be a tuple of strings"),
    ],
)
def test_numbers_out_of_range_are_refused(wrong: dict, said: str):
    with pytest.raises(ValueError, match=said):
        Sampling(**wrong)
