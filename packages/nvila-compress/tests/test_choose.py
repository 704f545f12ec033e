"""Each chooser against its formula, written as the plainest loop over tokens in float64."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nvila_compress import DART, CDPruner, DivPrune, PruMerge, VisionZip, attention_received
from torch import Tensor


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def draw(n: int, c: int, seed: int) -> Tensor:
    return torch.randn(n, c, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def positions(chooser: Callable[..., object], tokens: Tensor, **context: Tensor) -> list[int]:
    return chooser.select(tokens[None], **{key: x[None] for key, x in context.items()})[1][0].tolist()


SHAPES = {"n": st.integers(2, 14), "c": st.integers(2, 6), "k": st.integers(1, 14), "seed": st.integers(0, 10_000)}


@settings(max_examples=40, deadline=None)
@given(**SHAPES)
def test_divprune_is_the_greedy_max_min(n: int, c: int, k: int, seed: int) -> None:
    tokens, k = draw(n, c, seed), min(n, k)
    distance = [[1 - cosine(a, b) for b in tokens] for a in tokens]
    nearest = [min(distance[i][j] for j in range(n) if j != i) for i in range(n)]
    starts = [i for i in range(n) if nearest[i] > max(nearest) - 1e-6]  # two that are each other's nearest tie

    def greedy(kept: list[int]) -> list[int]:
        while len(kept) < k:
            kept.append(max(set(range(n)) - set(kept), key=lambda i: min(distance[i][j] for j in kept)))
        return sorted(kept)

    assert positions(DivPrune(k), tokens) in [greedy([start]) for start in starts]


def test_divprune_is_within_half_of_the_best_set() -> None:
    """What the greedy choice guarantees for a metric: chords of a sphere, which are ordered as the cosines are."""
    for seed in range(12):
        tokens = torch.nn.functional.normalize(draw(9, 3, seed), dim=1)
        chord = torch.cdist(tokens, tokens)
        best = max(smallest(chord, kept) for kept in itertools.combinations(range(9), 4))
        assert smallest(chord, positions(DivPrune(4), tokens)) >= best / 2


def smallest(distance: Tensor, kept: list[int] | tuple[int, ...]) -> float:
    return min(float(distance[i, j]) for i, j in itertools.combinations(kept, 2))


@settings(max_examples=40, deadline=None)
@given(**SHAPES, pivots=st.integers(1, 4))
def test_dart_keeps_pivots_and_the_least_alike(n: int, c: int, k: int, seed: int, pivots: int) -> None:
    tokens, k = draw(n, c, seed), min(n, k)
    by_norm = sorted(range(n), key=lambda i: -float(tokens[i].norm()))[: min(pivots, k)]
    rest = sorted(set(range(n)) - set(by_norm), key=lambda i: max(cosine(tokens[i], tokens[p]) for p in by_norm))
    assert positions(DART(k, pivots=pivots), tokens) == sorted(by_norm + rest[: k - len(by_norm)])


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 12), c=st.integers(5, 8), k=st.integers(1, 4), seed=st.integers(0, 10_000))
def test_cdpruner_is_the_determinant_greedy(n: int, c: int, k: int, seed: int) -> None:
    """Each step enlarges the determinant of the conditioned kernel most, determinants taken one by one."""
    tokens, prompt, k = draw(n, c, seed), draw(3, c, seed + 1), min(n - 1, k)
    relevance = [sum(cosine(x, p) for p in prompt) / 3 for x in tokens]
    low, high = min(relevance), max(relevance)
    relevance = [(r - low) / (high - low) for r in relevance]
    kernel = torch.tensor(
        [[relevance[i] * cosine(tokens[i], tokens[j]) * relevance[j] for j in range(n)] for i in range(n)],
        dtype=torch.float64,
    )
    kept: list[int] = []
    while len(kept) < k:
        determinants = {
            i: float(torch.linalg.det(kernel[[*kept, i]][:, [*kept, i]])) for i in range(n) if i not in kept
        }
        kept.append(max(determinants, key=determinants.__getitem__))
        if determinants[kept[-1]] < 1e-5:
            return  # what is left adds no volume: the order is by relevance, tested below
    assert positions(CDPruner(k), tokens, prompt=prompt) == sorted(kept)


def test_cdpruner_goes_on_by_relevance_once_all_is_spanned() -> None:
    tokens = torch.eye(2, dtype=torch.float64)[[0, 0, 0, 1, 1]] * torch.tensor([[1.0], [2], [3], [1], [2]])
    tokens = tokens + torch.tensor([[0.0, 0.3], [0, 0.2], [0, 0.1], [0, 0], [0, 0]], dtype=torch.float64)
    relevance = torch.nn.functional.normalize(tokens, dim=1)[:, 0]
    found = positions(CDPruner(4), tokens, prompt=torch.tensor([[1.0, 0.0]], dtype=torch.float64))
    assert set(relevance.topk(3).indices.tolist()) <= set(found)


def test_cdpruner_asks_what_is_relevant() -> None:
    """Two groups of tokens; the prompt lies with one, and its tokens are chosen."""
    tokens = torch.cat([draw(10, 8, 0) * 0.3 + torch.eye(8)[0], draw(10, 8, 1) * 0.3 + torch.eye(8)[1]])
    for axis in (0, 1):
        prompt = torch.eye(8, dtype=torch.float64)[axis][None]
        found = positions(CDPruner(4), tokens, prompt=prompt)
        assert all(place // 10 == axis for place in found)


def test_cdpruner_refuses_a_prompt_of_another_width() -> None:
    with pytest.raises(ValueError, match="prompt 5 wide for tokens 4 wide: pass embeddings"):
        CDPruner(1)(torch.zeros(1, 4, 4), prompt=torch.zeros(1, 2, 5))


@settings(max_examples=40, deadline=None)
@given(**SHAPES, contextual=st.sampled_from([0.0, 10 / 64, 0.5, 0.9]))
def test_visionzip_formula(n: int, c: int, k: int, seed: int, contextual: float) -> None:
    tokens, attention, k = draw(n, c, seed), draw(1, n, seed + 1)[0].softmax(0), min(n, k)
    targets = min(math.floor(contextual * k + 0.5), k - 1)
    dominant = sorted(range(n), key=lambda i: -float(attention[i]))[: k - targets]
    rest = [i for i in range(n) if i not in dominant]
    target = [rest[(2 * i + 1) * len(rest) // (2 * targets)] for i in range(targets)]
    groups = {t: [t] for t in target}
    for i in set(rest) - set(target):
        if target:
            groups[max(target, key=lambda t: cosine(tokens[i], tokens[t]))].append(i)
    groups |= {i: [i] for i in dominant}
    kept, places = VisionZip(k, contextual=contextual).select(tokens[None], attention=attention[None])
    assert places[0].tolist() == sorted(groups)
    expected = torch.stack([tokens[groups[place]].mean(0) for place in sorted(groups)])
    torch.testing.assert_close(kept[0], expected)


@settings(max_examples=40, deadline=None)
@given(**SHAPES, neighbors=st.integers(0, 5))
def test_prumerge_formula(n: int, c: int, k: int, seed: int, neighbors: int) -> None:
    tokens, attention, k = draw(n, c, seed), draw(1, n, seed + 1)[0].softmax(0), min(n, k)
    kept = sorted(sorted(range(n), key=lambda i: -float(attention[i]))[:k])
    dropped = [i for i in range(n) if i not in kept]
    expected = []
    for p in kept:
        nearest = sorted(dropped, key=lambda q: -cosine(tokens[p], tokens[q]))[:neighbors]
        group = [p, *nearest]
        expected.append((attention[group, None] * tokens[group]).sum(0) / attention[group].sum())
    found, places = PruMerge(k, neighbors=neighbors).select(tokens[None], attention=attention[None])
    assert places[0].tolist() == kept
    torch.testing.assert_close(found[0], torch.stack(expected))


def test_attention_received_by_hand() -> None:
    weights = torch.tensor([[[[0.2, 0.5, 0.3], [0.6, 0.1, 0.3], [0.1, 0.1, 0.8]], [[0.4, 0.3, 0.3]] * 3]])
    torch.testing.assert_close(attention_received(weights, class_token=True), torch.tensor([[0.4, 0.3]]))
    everyone = attention_received(weights, class_token=False)
    torch.testing.assert_close(
        everyone, torch.tensor([[(0.9 / 3 + 0.4) / 2, (0.7 / 3 + 0.3) / 2, (1.4 / 3 + 0.3) / 2]])
    )
    with pytest.raises(ValueError, match=r"attention of shape \[2, 3, 3\]: pass \[b, heads, tokens, tokens\]"):
        attention_received(torch.zeros(2, 3, 3), class_token=False)


def test_duplicates_are_dropped_first() -> None:
    """Of four things said three times each, DivPrune keeps one of each, and DART no copy of a pivot."""
    tokens = torch.eye(4, dtype=torch.float64).repeat(3, 1) * torch.linspace(1, 2, 12)[:, None]
    assert sorted(place % 4 for place in positions(DivPrune(4), tokens)) == [0, 1, 2, 3]
    kept = positions(DART(9, pivots=1), tokens)
    assert [place for place in kept if place % 4 == 11 % 4] == [11], "the pivot, the longest, and no copy of it"


def test_refusals() -> None:
    with pytest.raises(ValueError, match="pivots 0 < 1"):
        DART(pivots=0)
    with pytest.raises(ValueError, match=r"contextual 1.0 is not in \[0, 1\)"):
        VisionZip(contextual=1.0)
    with pytest.raises(ValueError, match="neighbors -1 < 0"):
        PruMerge(neighbors=-1)
