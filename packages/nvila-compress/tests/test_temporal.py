"""Averages over frames, and over blocks of frames, rows and columns."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nvila_compress import GridError, SpatioTemporalPool, TemporalAverage


def test_by_hand() -> None:
    """Five frames in groups of two: the last group holds one frame."""
    frames = torch.tensor([0.0, 2.0, 4.0, 8.0, 100.0]).view(5, 1, 1)
    assert TemporalAverage(2)(frames).flatten().tolist() == [1, 6, 100]


@settings(max_examples=60, deadline=None)
@given(frames=st.integers(1, 20), group=st.integers(1, 9))
def test_every_frame_counts_once(frames: int, group: int) -> None:
    tokens = torch.randn(frames, 6, 3, dtype=torch.float64)
    pool = TemporalAverage(group)
    pooled = pool(tokens)
    assert pooled.shape[0] == pool.out_frames(frames)
    expected = torch.stack([tokens[start : start + group].mean(0) for start in range(0, frames, group)])
    torch.testing.assert_close(pooled, expected)


def test_no_square_is_needed() -> None:
    assert TemporalAverage(2)(torch.zeros(4, 7, 2)).shape == (2, 7, 2)


@settings(max_examples=60, deadline=None)
@given(
    frames=st.integers(1, 9),
    grid=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    size=st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4)),
)
def test_pool_is_the_mean_of_each_block(frames: int, grid: tuple[int, int], size: tuple[int, int, int]) -> None:
    (rows, columns), (t, h, w) = grid, size
    video = torch.randn(frames, rows, columns, 2, dtype=torch.float64)
    pool = SpatioTemporalPool([size])
    (pooled,) = pool(video.flatten(1, 2), grid)
    expected = [
        [
            video[i : i + t, j : j + h, k : k + w].mean((0, 1, 2))
            for j in range(0, rows, h)
            for k in range(0, columns, w)
        ]
        for i in range(0, frames, t)
    ]
    torch.testing.assert_close(pooled, torch.stack([torch.stack(row) for row in expected]))
    (shape,) = pool.out_shapes(frames, grid)
    assert pooled.shape == (shape[0], shape[1] * shape[2], 2)


def test_sizes_stay_apart_and_in_order() -> None:
    pool = SpatioTemporalPool([(8, 1, 1), (2, 3, 3)])
    tokens = torch.randn(8, 36, 4)
    first, second = pool(tokens)
    assert first.shape == (1, 36, 4)
    assert second.shape == (4, 4, 4)
    assert pool.out_shapes(8, (6, 6)) == [(1, 6, 6), (4, 2, 2)]
    torch.testing.assert_close(first, TemporalAverage(8)(tokens))


def test_pool_compiles_exports_and_has_gradients() -> None:
    pool = SpatioTemporalPool([(4, 1, 1), (2, 2, 3)])
    tokens = torch.randn(5, 12, 4, requires_grad=True)
    expected = pool(tokens, (4, 3))
    compiled = torch.compile(pool, fullgraph=True, backend="eager")
    exported = torch.export.export(pool, (tokens.detach(), (4, 3))).module()
    for found in (compiled(tokens, (4, 3)), exported(tokens.detach(), (4, 3))):
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)
    sum(pooled.sum() for pooled in expected).backward()
    assert (tokens.grad != 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pool_keeps_the_dtype(dtype: torch.dtype) -> None:
    (pooled,) = SpatioTemporalPool([(2, 2, 2)])(torch.ones(3, 9, 2, dtype=dtype))
    assert pooled.dtype == dtype
    assert (pooled == 1).all()


def test_refusals() -> None:
    with pytest.raises(ValueError, match="group 0 < 1"):
        TemporalAverage(0)
    with pytest.raises(GridError, match="0 frames have no average"):
        TemporalAverage(2)(torch.zeros(0, 4, 2))
    with pytest.raises(GridError, match="0 frames have no average"):
        SpatioTemporalPool([(2, 1, 1)])(torch.zeros(0, 4, 2))
    with pytest.raises(ValueError, match="no pool size"):
        SpatioTemporalPool([])
    for size in [(2, 2), (0, 1, 1), (1, 1, 1, 1)]:
        with pytest.raises(ValueError, match="is not three numbers >= 1"):
            SpatioTemporalPool([size])
    with pytest.raises(GridError, match="5 tokens do not lie on a square"):
        SpatioTemporalPool([(1, 1, 1)])(torch.zeros(2, 5, 2))
