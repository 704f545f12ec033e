"""Output heads that leave the weight in its file."""

import torch
from nvila_model.settled import screened
from nvila_model.vocabulary import ScreenedHead
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
