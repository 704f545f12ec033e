"""Tiles that are the same, and only those, are one."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nvila_train.delta_loss.forward.distinct_tiles import distinct


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), max_size=5))
def test_every_medium_is_put_together_again(numbers: list[list[int]]):
    kinds = torch.randn(4, 3, 2, 2)
    media = [kinds[chosen] for chosen in numbers]
    tiles, places = distinct(media)
    assert len(tiles) == len({number for chosen in numbers for number in chosen})
    for medium, own in zip(media, places, strict=True):
        assert torch.equal(torch.stack([tiles[place] for place in own]), medium)


def test_equal_sums_do_not_make_equal_tiles():
    """A dot in one corner or another: the sums are the same."""
    dots = torch.eye(12).reshape(12, 3, 2, 2)
    tiles, places = distinct([dots, dots.flip(0)])
    assert len(tiles) == 12
    assert places == [[*range(12)], [*reversed(range(12))]]
