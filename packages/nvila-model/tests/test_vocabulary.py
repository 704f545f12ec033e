"""Output heads that leave the weight in its file."""

import pytest
import torch
from nvila_model.cpu.optimized_model import screened
from nvila_model.network.vocabulary import ScreenedHead, highest
from torch import nn
from torch.nn import functional as F


def test_the_best_scores_are_those_of_the_weight() -> None:
    torch.manual_seed(0)
    weight = torch.randn(500, 64).bfloat16()
    rough = nn.Linear(64, 500, bias=False)
    rough.weight = nn.Parameter(weight.float() + 0.1 * torch.randn(500, 64))
    hidden = torch.randn(2, 3, 64)
    with torch.inference_mode():
        rough_scores, exact = rough(hidden), F.linear(hidden, weight.float())
        scores = ScreenedHead(rough, weight, best=20)(hidden)
    again = torch.zeros_like(scores, dtype=torch.bool).scatter(-1, rough_scores.topk(20).indices, True)
    torch.testing.assert_close(scores[again], exact[again])
    torch.testing.assert_close(scores[~again], rough_scores[~again])
    assert torch.equal(scores.argmax(-1), exact.argmax(-1))
    assert not torch.equal(rough_scores.argmax(-1), exact.argmax(-1))  # or the test would show nothing


def test_a_small_vocabulary_is_scored_whole() -> None:
    torch.manual_seed(0)
    weight = torch.randn(30, 128)
    hidden = torch.randn(4, 128)
    with torch.inference_mode():
        torch.testing.assert_close(screened(weight)(hidden), F.linear(hidden, weight))


@pytest.mark.parametrize("tokens", [80, 640, 1000, 5007])
def test_the_highest_of_many(tokens: int) -> None:
    torch.manual_seed(tokens)
    scores = torch.randn(tokens)
    scores[-3:] = 9.0  # behind the last whole group
    scores[64:70] = 8.0  # several in one group
    assert set(highest(scores, 9).tolist()) == {*range(64, 70), *range(tokens - 3, tokens)}
    assert torch.equal(scores[highest(scores, 40)].sort().values, scores.topk(40).values.sort().values)
