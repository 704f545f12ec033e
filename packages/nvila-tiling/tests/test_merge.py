"""Maps and blocks: inverses, the merged map by hand, and features that do not fit."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from nvila_tiling import DynamicS2, DynamicTiles, Grid, GridError, SingleTile, merge_grid, merge_scales, split_grid

TINY = DynamicS2(scales=(4, 8, 12))
small = st.integers(1, 5)


@settings(max_examples=50, deadline=None)
@given(small, small, small, small, small, st.sampled_from([torch.float32, torch.bfloat16, torch.uint8]))
def test_split_and_merge_are_inverses(rows: int, cols: int, h: int, w: int, c: int, dtype: torch.dtype) -> None:
    grid = Grid(rows, cols)
    map = torch.arange(rows * h * cols * w * c).remainder(251).reshape(rows * h, cols * w, c).to(dtype)
    blocks = split_grid(map, grid)
    assert blocks.shape == (grid.count, h, w, c)
    assert torch.equal(merge_grid(blocks, grid), map)
    assert torch.equal(split_grid(merge_grid(blocks, grid), grid), blocks)


def test_blocks_are_numbered_row_by_row() -> None:
    map = torch.tensor([[0, 0, 1, 1, 2, 2], [3, 3, 4, 4, 5, 5]])[:, :, None]
    assert torch.equal(split_grid(map, Grid(2, 3))[:, 0, 0, 0], torch.arange(6))


def test_merged_map_by_hand() -> None:
    """Each tile's features are its number: the merged map says which tile of each scale lies where."""
    plan = TINY.plan(400, 300)
    assert plan.grids[-1] == Grid(3, 4)
    features = torch.arange(17.0)[:, None, None].expand(17, 4, 1)
    (map,) = merge_scales(features, [plan])
    assert map.shape == (6, 8, 3)
    assert (map[:, :, 0] == 0).all()
    assert map[0, :, 1].tolist() == [1, 1, 1, 1, 2, 2, 2, 2]
    assert map[:, 0, 1].tolist() == [1, 1, 1, 3, 3, 3]
    assert map[0, :, 2].tolist() == [5, 5, 6, 6, 7, 7, 8, 8]
    assert map[:, 0, 2].tolist() == [5, 5, 9, 9, 13, 13]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 99), st.integers(1, 99), st.booleans()), max_size=5), st.integers(-3, 2))
def test_a_batch_equals_a_loop(images: list[tuple[int, int, bool]], output_scale: int) -> None:
    tiler = DynamicS2(scales=(4, 8, 12), output_scale=output_scale)
    plans = [(tiler if tiled else tiler.single()).plan(width, height) for width, height, tiled in images]
    features = torch.randn(sum(plan.tiles for plan in plans), 4, 3)
    merged = merge_scales(features, plans)
    start = 0
    for plan, map in zip(plans, merged, strict=True):
        (alone,) = merge_scales(features[start : start + plan.tiles], [plan])
        assert torch.equal(map, alone)
        assert map.shape == (plan.output_grid.rows * 2, plan.output_grid.cols * 2, 9)
        start += plan.tiles


def test_scales_are_averaged_by_area_in_float32() -> None:
    plan = DynamicS2(scales=(4, 8, 12), output_scale=0).plan(30, 30)
    features = torch.randn(plan.tiles, 9, 2).to(torch.bfloat16)
    (map,) = merge_scales(features, [plan])
    stitched = merge_grid(features[1:5].reshape(4, 3, 3, 2), Grid(2, 2))
    expected = F.avg_pool2d(stitched.float().permute(2, 0, 1), 2).permute(1, 2, 0).to(torch.bfloat16)
    assert map.dtype == torch.bfloat16
    assert torch.equal(map[:, :, 2:4], expected)


def test_an_untiled_image_repeats_its_features() -> None:
    features = torch.randn(1, 4, 3)
    (map,) = merge_scales(features, [TINY.single().plan(50, 20)])
    assert torch.equal(map, features.reshape(2, 2, 3).repeat(1, 1, 3))
    (single,) = merge_scales(features, [SingleTile().plan(50, 20)])
    assert torch.equal(single, features.reshape(2, 2, 3))


def test_gradients_reach_every_tile() -> None:
    plan = TINY.plan(40, 20)
    features = torch.randn(plan.tiles, 4, 2, requires_grad=True)
    merge_scales(features, [plan])[0].sum().backward()
    assert features.grad is not None
    assert (features.grad != 0).all()


def test_features_that_do_not_fit_are_refused() -> None:
    plan = TINY.plan(10, 10)
    with pytest.raises(GridError, match=r"shape \[3, 4, 2\] are not those of 14 tiles: pass \[14, h\*w, c\]"):
        merge_scales(torch.zeros(3, 4, 2), [plan])
    with pytest.raises(GridError, match="5 features a tile do not form a square"):
        merge_scales(torch.zeros(14, 5, 2), [plan])
    lite = DynamicTiles(tile=4).plan(30, 20)
    with pytest.raises(GridError, match="a plan with a thumbnail has no merged map"):
        merge_scales(torch.zeros(lite.tiles, 4, 2), [lite])
    with pytest.raises(GridError, match=r"does not divide into 2 x 3 blocks: give .* multiple of 2 and W of 3"):
        split_grid(torch.zeros(4, 4, 1), Grid(2, 3))
    with pytest.raises(GridError, match=r"do not fill 2 x 3: give \[6, h, w, c\]"):
        merge_grid(torch.zeros(5, 2, 2, 1), Grid(2, 3))
