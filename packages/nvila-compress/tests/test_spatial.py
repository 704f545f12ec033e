"""Folding tokens into channels, and back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nvila_compress import GridError, SpatialToChannel, channel_to_spatial


def test_by_hand() -> None:
    """A 3 x 3 grid of numbers, folded by 2: zeros at the bottom and right."""
    tokens = torch.arange(1.0, 10.0).view(1, 9, 1)
    folded = SpatialToChannel(2)(tokens)
    assert folded.tolist() == [[[1, 2, 4, 5], [3, 0, 6, 0], [7, 8, 0, 0], [9, 0, 0, 0]]]


def test_channels_of_one_token_stay_together() -> None:
    tokens = torch.tensor([[[1.0, 10.0], [2.0, 20.0], [3.0, 30.0], [4.0, 40.0]]])
    assert SpatialToChannel(2)(tokens).tolist() == [[[1, 10, 2, 20, 3, 30, 4, 40]]]


def test_the_papers_counts() -> None:
    """NVILA, Table 1: 256 tokens a tile with 2 x 2, 121 with 3 x 3."""
    tile = torch.zeros(1, 1024, 1)
    assert SpatialToChannel(2)(tile).shape == (1, 256, 4)
    assert SpatialToChannel(3)(tile).shape == (1, 121, 9)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    factor=st.integers(1, 5),
    batch=st.integers(1, 3),
    channels=st.integers(1, 4),
)
def test_back_again(rows: int, columns: int, factor: int, batch: int, channels: int) -> None:
    tokens = torch.randn(batch, rows * columns, channels)
    folded = SpatialToChannel(factor)(tokens, (rows, columns))
    assert torch.equal(channel_to_spatial(folded, factor, (rows, columns)), tokens)
    assert folded.count_nonzero() == tokens.count_nonzero(), "nothing is lost, nothing but zeros is added"


def test_back_again_without_a_grid() -> None:
    tokens = torch.randn(2, 36, 5)
    assert torch.equal(channel_to_spatial(SpatialToChannel(3)(tokens), 3), tokens)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="factor 0 < 1"):
        SpatialToChannel(0)
    with pytest.raises(GridError, match="35 tokens do not lie on a square"):
        SpatialToChannel(2)(torch.zeros(1, 35, 2))
    with pytest.raises(GridError, match="10 channels do not unfold by 2 x 2"):
        channel_to_spatial(torch.zeros(1, 4, 10), 2)
    with pytest.raises(GridError, match="4 tokens do not lie on a grid of 3 x 3"):
        channel_to_spatial(torch.zeros(1, 4, 8), 2, (5, 6))
    assert issubclass(GridError, ValueError)
