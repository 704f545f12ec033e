"""Masks, against what a reader would draw."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from nvila_model.network import Qwen2, padding_mask, segment_mask


def drawn(mask: torch.Tensor) -> list[str]:
    return ["".join("x" if seen else "." for seen in row) for row in mask[0, 0].tolist()]


def test_segments_see_their_own_past():
    assert drawn(segment_mask(torch.tensor([[0, 0, 1, 1, 1]]))) == [
        "x....",
        "xx...",
        "..x..",
        "..xx.",
        "..xxx",
    ]


def test_a_prefix_is_seen_by_those_that_share_it():
    segments = torch.tensor([[0, 0, 1, 2, 2, 9]])
    prefixes = torch.tensor([[-1, -1, 0, 0, 0, -1]])
    assert drawn(segment_mask(segments, prefixes)) == [
        "x.....",
        "xx....",
        "xxx...",
        "xx.x..",
        "xx.xx.",
        ".....x",
    ]


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(0, 3))
def test_every_position_sees_itself(lengths: list[int], padding: int):
    numbers = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    segments = torch.cat((numbers, torch.full((padding,), -1)))[None]
    mask = segment_mask(segments)
    assert mask[0, 0].diagonal().all()
    assert int(mask.sum()) == sum(n * (n + 1) // 2 for n in (*lengths, padding))


def test_padding_on_the_right_needs_no_mask():
    assert padding_mask(torch.tensor([[True, True, False]])) is None
    assert drawn(padding_mask(torch.tensor([[False, True, True]]))) == ["x..", ".x.", ".xx"]


@torch.no_grad()
def test_samples_in_one_row_are_as_they_were_alone():
    torch.manual_seed(0)
    llm = Qwen2(vocab_size=11, width=16, layers=2, heads=4, kv_heads=2, mlp_width=24)
    picture, first, second = torch.randn(1, 3, 16), torch.randn(1, 2, 16), torch.randn(1, 4, 16)
    row = torch.cat((picture, first, second), dim=1)
    segments = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2]])
    positions = torch.tensor([[0, 1, 2, 3, 4, 3, 4, 5, 6]])
    states = llm(row, positions=positions, mask=segment_mask(segments, torch.zeros_like(segments)))
    torch.testing.assert_close(states[:, 3:5], llm(torch.cat((picture, first), dim=1))[:, 3:])
    torch.testing.assert_close(states[:, 5:], llm(torch.cat((picture, second), dim=1))[:, 3:])
