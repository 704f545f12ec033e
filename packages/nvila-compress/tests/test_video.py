"""The choosers of video against their formulas, written as plain loops in float64."""

import math
from collections import defaultdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nvila_compress import EVS, FastVID, GridError, VidCom2
from nvila_compress.video.apportion import apportion
from torch import Tensor


def draw(t: int, n: int, c: int, seed: int) -> Tensor:
    """Frames that resemble each other in runs, as those of a video do."""
    generator = torch.Generator().manual_seed(seed)
    scenes = torch.randn(3, n, c, dtype=torch.float64, generator=generator)
    noise = torch.randn(t, n, c, dtype=torch.float64, generator=generator)
    return scenes[torch.arange(t) * 3 // t] + 0.3 * noise


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


SHAPES = {
    "t": st.integers(1, 6),
    "n": st.integers(1, 6),
    "c": st.integers(2, 5),
    "k": st.integers(1, 36),
    "seed": st.integers(0, 10_000),
}


@settings(max_examples=40, deadline=None)
@given(**SHAPES)
def test_evs_keeps_what_changed(t: int, n: int, c: int, k: int, seed: int) -> None:
    video, k = draw(t, n, c, seed), min(k, t * n)
    change = {
        i: math.inf if i < n else 1 - cosine(video[i // n, i % n], video[i // n - 1, i % n]) for i in range(t * n)
    }
    expected = sorted(sorted(change, key=lambda i: (-change[i], i))[:k])
    kept, positions = EVS(k).select(video)
    assert positions[0].tolist() == expected
    assert torch.equal(kept[0], video.flatten(0, 1)[expected])


def test_evs_of_a_still_video_is_its_first_frame() -> None:
    frame = torch.randn(1, 12, 4)
    assert EVS(12).select(frame.expand(5, -1, -1))[1].tolist() == [list(range(12))]
    moved = frame.expand(5, -1, -1).clone()
    moved[3, 7] += 10 * torch.randn(4)
    assert {12 * 3 + 7, 12 * 4 + 7} <= set(EVS(14).select(moved)[1][0].tolist()), "there, and back again"


def seats(weights: list[float], capacity: list[int], count: int) -> list[int]:
    """Sainte-Lague, seat by seat: the next goes to the highest weight / (2 seats + 1)."""
    given = [0] * len(weights)
    for _ in range(count):
        open_ = [i for i in range(len(weights)) if given[i] < capacity[i]]
        given[max(open_, key=lambda i: weights[i] / (2 * given[i] + 1))] += 1
    return given


@settings(max_examples=60, deadline=None)
@given(**SHAPES)
def test_budgets_are_divided_seat_by_seat(t: int, n: int, c: int, k: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores, weights = torch.rand(t, n, generator=generator), 0.1 + torch.rand(t, generator=generator)
    k = min(k, t * n)
    positions = apportion(scores, weights, k)
    assert torch.bincount(positions // n, minlength=t).tolist() == seats(weights.tolist(), [n] * t, k)
    for frame in range(t):
        own = set((positions[positions // n == frame] % n).tolist())
        assert own == set(scores[frame].topk(len(own)).indices.tolist())


@settings(max_examples=40, deadline=None)
@given(**SHAPES, temperature=st.sampled_from([0.01, 0.1, 1.0]))
def test_vidcom2_formula(t: int, n: int, c: int, k: int, seed: int, temperature: float) -> None:
    video, k = draw(t, n, c, seed), min(k, t * n)
    mean = video.flatten(0, 1).mean(0)
    unique = [[-cosine(x, mean) for x in frame] for frame in video]
    exps = [math.exp((sum(row) / n) / temperature) for row in unique]
    weights = [1 + e / sum(exps) - 1 / t for e in exps]
    expected = []
    for frame, share in enumerate(seats(weights, [n] * t, k)):
        own = video[frame].mean(0)
        score = [unique[frame][i] - cosine(video[frame, i], own) for i in range(n)]
        expected += [frame * n + i for i in sorted(range(n), key=lambda i: -score[i])[:share]]
    assert VidCom2(k, temperature=temperature).select(video)[1][0].tolist() == sorted(expected)


def test_vidcom2_gives_the_odd_frame_more() -> None:
    video = torch.randn(1, 20, 8).expand(6, -1, -1) + 0.01 * torch.randn(6, 20, 8)
    video[4] = torch.randn(20, 8)
    frames = VidCom2(0.25).select(video)[1][0] // 20
    counts = torch.bincount(frames, minlength=6)
    assert counts[4] > counts[[0, 1, 2, 3, 5]].max()
    assert counts.sum() == 30


def fastvid_by_hand(video: Tensor, attention: Tensor, k: int, method: FastVID) -> dict[int, Tensor]:
    """Position to token, step by step."""
    t, n, _ = video.shape
    means = video.mean(1)
    near = [cosine(means[i], means[i + 1]) for i in range(t - 1)]
    cuts = set(sorted(range(t - 1), key=lambda i: near[i])[: method.segments - 1])
    cuts |= {i for i in range(t - 1) if near[i] < method.threshold}
    segment = [sum(cut < frame for cut in cuts) for frame in range(t)]
    anchors = math.floor(method.density * k + 0.5)
    salient: list[int] = []
    for frame, share in enumerate(seats([1.0] * t, [n] * t, k - anchors)):
        salient += [frame * n + i for i in sorted(range(n), key=lambda i: -float(attention[frame, i]))[:share]]
    weights, chosen = [], []
    for frame in range(t):
        mates = [f for f in range(t) if segment[f] == segment[frame]]
        leading = mates[:: method.stride]
        weights.append(len(mates) / len(leading) if frame in leading else 1e-6)
    free = [n - sum(i // n == frame for i in salient) for frame in range(t)]
    for frame, share in enumerate(seats(weights, free, anchors)):
        rest = [i for i in range(n) if frame * n + i not in salient]
        peak = peaks_by_hand(video[frame], method.neighbors)
        chosen += [frame * n + i for i in sorted(rest, key=lambda i: -peak[i])[:share]]
    flat = video.flatten(0, 1)
    groups = defaultdict(list)
    for i in set(range(t * n)) - set(salient) - set(chosen):
        mates = [a for a in chosen if segment[a // n] == segment[i // n]]
        if mates:
            groups[max(mates, key=lambda a: cosine(flat[a], flat[i]))].append(i)
    out = {i: flat[i] for i in [*salient, *chosen]}
    for a, members in groups.items():
        out[a] = method.beta * flat[a] + (1 - method.beta) * flat[members].mean(0)
    return out


def peaks_by_hand(frame: Tensor, neighbors: int) -> list[float]:
    unit = [x / x.norm() for x in frame]
    distance = [[float((a - b).norm()) for b in unit] for a in unit]
    n, rho = len(unit), []
    for i in range(n):
        nearest = sorted(distance[i][j] ** 2 for j in range(n) if j != i)[:neighbors]
        rho.append(math.exp(-sum(nearest) / len(nearest)))
    peak = []
    for i in range(n):
        higher = [distance[i][j] for j in range(n) if rho[j] > rho[i]]
        peak.append(rho[i] * (min(higher) if higher else max(distance[i])))
    return peak


@settings(max_examples=60, deadline=None)
@given(
    t=st.integers(1, 7), n=st.integers(2, 6), k=st.integers(1, 42), seed=st.integers(0, 10_000),
    segments=st.integers(1, 4), density=st.sampled_from([0.0, 0.4, 1.0]), stride=st.integers(1, 4),
)  # fmt: skip
def test_fastvid_formula(t: int, n: int, k: int, seed: int, segments: int, density: float, stride: int) -> None:
    video, k = draw(t, n, 5, seed), min(k, t * n)
    attention = torch.rand(t, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    method = FastVID(k, segments=segments, density=density, stride=stride, neighbors=2)
    expected = fastvid_by_hand(video, attention, k, method)
    kept, positions = method.select(video, attention=attention)
    assert positions[0].tolist() == sorted(expected)
    torch.testing.assert_close(kept[0], torch.stack([expected[i] for i in sorted(expected)]))


def test_fastvid_merges_within_a_segment_only() -> None:
    """Two scenes: what stands for one has nothing of the other."""
    video = torch.zeros(8, 6, 4)
    video[:4, :, :2] = torch.rand(4, 6, 2) + 0.1
    video[4:, :, 2:] = torch.rand(4, 6, 2) + 0.1
    kept, positions = FastVID(0.25, segments=1).select(video, attention=torch.rand(8, 6))
    first = positions[0] < 24
    assert (kept[0, first, 2:] == 0).all()
    assert (kept[0, ~first, :2] == 0).all()


@pytest.mark.parametrize("method", [EVS(0.5), VidCom2(0.5), FastVID(0.5)])
def test_no_frame_is_refused(method: EVS) -> None:
    context = {"attention": torch.zeros(0, 4)} if "attention" in method.needs else {}
    with pytest.raises(GridError, match="0 frames have no tokens to choose from"):
        method(torch.zeros(0, 4, 2), **context)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="temperature 0 <= 0"):
        VidCom2(temperature=0)
    for wrong in ({"segments": 0}, {"stride": 0}, {"neighbors": 0}, {"density": 1.5}, {"beta": 0.0}):
        with pytest.raises(ValueError, match="must be at least 1, density"):
            FastVID(**wrong)
