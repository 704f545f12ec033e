"""The two choices that know nothing."""

import torch
from nvila_compress import RandomChoice, UniformChoice


def test_uniform_by_hand() -> None:
    assert UniformChoice(3).select(torch.zeros(1, 9, 1))[1].tolist() == [[1, 4, 7]]
    assert UniformChoice(0.5).select(torch.zeros(1, 5, 1))[1].tolist() == [[0, 2, 4]]
    assert UniformChoice(1).select(torch.zeros(2, 8, 1))[1].tolist() == [[4], [4]]


def test_random_is_spread_and_repeats() -> None:
    """Over many seeds every place is drawn about equally often, neighbours no more than others."""
    draws = torch.stack([RandomChoice(16, seed=seed).select(torch.zeros(1, 64, 1))[1][0] for seed in range(400)])
    counts = torch.zeros(64).index_add(0, draws.flatten(), torch.ones(400 * 16))
    assert ((counts - 100).abs() < 50).all()  # five standard deviations of 8.7
    neighbours = (draws.diff(dim=1) == 1).float().mean()
    assert abs(neighbours - 16 / 64) < 0.05
    assert torch.equal(RandomChoice(16, seed=3).select(torch.zeros(1, 64, 1))[1][0], draws[3])
