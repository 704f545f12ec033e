"""TokenLearner and the Perceiver Resampler: laws of their own, and that they can learn."""

import pytest
import torch
from nvila_compress import PerceiverResampler, TokenLearner
from torch import nn


@pytest.fixture(params=[TokenLearner, PerceiverResampler])
def learned(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    options = {"depth": 2, "heads": 2, "head_dim": 8} if request.param is PerceiverResampler else {}
    return request.param(channels=12, tokens=5, **options)


def test_order_of_the_tokens_does_not_matter(learned: nn.Module) -> None:
    """Both are sets functions: what a token's place means must be in the token itself."""
    tokens = torch.randn(2, 20, 12)
    shuffled = tokens[:, torch.randperm(20)]
    torch.testing.assert_close(learned(tokens), learned(shuffled), atol=1e-5, rtol=1e-5)


def test_token_learner_makes_weighted_means() -> None:
    learner = TokenLearner(channels=6, tokens=4)
    tokens = torch.randn(3, 10, 6)
    out = learner(tokens)
    assert (out <= tokens.amax(1, keepdim=True) + 1e-6).all()
    assert (out >= tokens.amin(1, keepdim=True) - 1e-6).all()
    same = torch.randn(1, 1, 6).expand(1, 10, 6)
    torch.testing.assert_close(learner(same), same[:, :4])


def test_token_learner_formula() -> None:
    learner = TokenLearner(channels=6, tokens=4)
    norm, first, act, second = learner.weights
    x = torch.randn(10, 6)
    weights = torch.softmax(second(act(first(norm(x)))), dim=0)
    torch.testing.assert_close(learner(x[None])[0], weights.T @ x)


def test_resampler_attention_formula() -> None:
    """One head of the first layer, by hand in plain matrix products."""
    layer = PerceiverResampler(channels=6, tokens=3, depth=1, heads=1, head_dim=4).layers[0]
    latents, tokens = torch.randn(1, 3, 6), torch.randn(1, 10, 6)
    keys, values = layer.to_kv(torch.cat([tokens, latents], 1)).chunk(2, -1)
    weights = (layer.to_q(latents) @ keys.mT / 2).softmax(-1)
    torch.testing.assert_close(layer.attend(latents, tokens), layer.to_out(weights @ values))


def test_learns_to_carry_what_is_asked_for(learned: nn.Module) -> None:
    """Find the one marked token among twenty: impossible for an untrained mean."""
    torch.manual_seed(1)
    head = nn.Linear(12, 4)
    optimizer = torch.optim.Adam([*learned.parameters(), *head.parameters()], lr=1e-2)
    for _ in range(80):
        tokens, value = marked()
        loss = (head(learned(tokens).mean(1)) - value).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    tokens, value = marked()
    assert (head(learned(tokens).mean(1)) - value).square().mean() < 0.5 * value.var()


def marked() -> tuple[torch.Tensor, torch.Tensor]:
    tokens = torch.randn(64, 20, 12)
    rows, place = torch.arange(64), torch.randint(20, (64,))
    tokens[..., -1] = 0
    tokens[rows, place, -1] = 4
    return tokens, tokens[rows, place, :4]


def test_out_grid_of_a_count_that_is_no_square(learned: nn.Module) -> None:
    assert learned.out_grid((32, 32)) == (1, 5)
    assert TokenLearner(channels=2, tokens=121).out_grid((32, 32)) == (11, 11)


def test_defaults_are_the_papers() -> None:
    assert TokenLearner(channels=4).tokens == PerceiverResampler(channels=4).tokens == 121


def test_refusals() -> None:
    with pytest.raises(ValueError, match="tokens 0, hidden 64: each must be at least 1"):
        TokenLearner(channels=4, tokens=0)
    with pytest.raises(ValueError, match="depth 0, heads 8"):
        PerceiverResampler(channels=4, depth=0)
