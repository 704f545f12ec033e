"""Token merging against its formula, one pair after another."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nvila_compress import Merge, ToMe
from torch import Tensor


def draw(n: int, c: int, seed: int) -> Tensor:
    return torch.randn(n, c, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def tome_by_hand(tokens: Tensor, count: int) -> tuple[list[Tensor], list[int]]:
    """Lists of (place, members), merged pair by pair as the paper's figure shows."""
    groups = [(place, [place]) for place in range(len(tokens))]
    while len(groups) > count:
        mean = [tokens[members].mean(0) for _, members in groups]
        a, b = range(0, len(groups), 2), range(1, len(groups), 2)
        edges = []
        for i in a:
            likeness = [float(mean[i] @ mean[j] / (mean[i].norm() * mean[j].norm())) for j in b]
            best = max(range(len(likeness)), key=likeness.__getitem__)
            edges.append((likeness[best], i, b[best]))
        edges.sort(key=lambda edge: (-edge[0], edge[1]))
        for _, i, j in edges[: min(len(groups) - count, len(groups) // 2)]:
            groups[j] = (groups[j][0], groups[j][1] + groups[i][1])
            groups[i] = (groups[i][0], [])
        groups = [group for group in groups if group[1]]
    return [tokens[members].mean(0) for _, members in groups], [place for place, _ in groups]


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 15), c=st.integers(2, 5), k=st.integers(1, 15), seed=st.integers(0, 10_000))
def test_tome_formula(n: int, c: int, k: int, seed: int) -> None:
    tokens, k = draw(n, c, seed), min(n, k)
    expected, places = tome_by_hand(tokens, k)
    found, positions = ToMe(k).select(tokens[None])
    assert positions[0].tolist() == places
    torch.testing.assert_close(found[0], torch.stack(expected))


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 15), share=st.floats(0.1, 1.0), seed=st.integers(0, 10_000))
def test_every_token_counts_once(n: int, share: float, seed: int) -> None:
    """The groups partition the tokens: the mean of all, weighted by the size of each group, is the mean of all."""
    tokens = draw(n, 3, seed)
    tokens = torch.cat([tokens, torch.eye(n, dtype=torch.float64)], dim=1)
    merged = ToMe(share)(tokens[None])[0]
    members = merged[:, 3:] > 0
    assert (members.sum(0) == 1).all()
    torch.testing.assert_close((merged * members.sum(1, keepdim=True)).sum(0), tokens.sum(0))


class DropOdd(Merge):
    """A user's pairing that merges the third into the first and drops the second."""

    def pair(self, tokens: Tensor, count: int, grid: tuple[int, int], **context: Tensor) -> Tensor:
        return torch.tensor([[0, -1, 0]]).expand(tokens.shape[0], -1)


def test_dropped_tokens_are_in_no_mean() -> None:
    tokens = torch.tensor([[[1.0], [100.0], [3.0]]], requires_grad=True)
    merged, positions = DropOdd(1).select(tokens)
    assert merged.tolist() == [[[2.0]]]
    assert positions.tolist() == [[0]]
    merged.sum().backward()
    assert tokens.grad.flatten().tolist() == [0.5, 0, 0.5]
