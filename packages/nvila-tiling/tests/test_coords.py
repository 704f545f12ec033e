"""Coordinates: there and back, against pixels, and points that cannot be."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nvila_tiling import DynamicS2, DynamicTiles, Grid, GridError, SingleTile, TilePlan, image_to_tile, tile_to_image
from PIL import Image, ImageDraw

plans = st.builds(
    lambda tiler, width, height: tiler.plan(width, height),
    st.sampled_from([DynamicS2(), DynamicTiles(), SingleTile(), SingleTile(mode="pad"), DynamicTiles(thumbnail=False)]),
    st.integers(1, 5000),
    st.integers(1, 5000),
)


@settings(max_examples=40, deadline=None)
@given(plans, st.data())
def test_image_to_tile_and_back(plan: TilePlan, data: st.DataObject) -> None:
    points = torch.rand(5, 2, dtype=torch.float64) * torch.tensor(plan.size)
    scale = data.draw(st.integers(-len(plan.grids), len(plan.levels) - 1))
    tile, local = image_to_tile(points, plan, scale=scale)
    assert tile.shape == (5,)
    assert (local >= 0).all()
    assert (local <= plan.tile).all()
    assert {plan.place(int(number)).scale for number in tile} == {scale % len(plan.grids) if scale < 0 else scale}
    torch.testing.assert_close(tile_to_image(local, plan, tile=tile), points)


@settings(max_examples=40, deadline=None)
@given(plans, st.data())
def test_tile_to_image_and_back(plan: TilePlan, data: st.DataObject) -> None:
    tile = data.draw(st.integers(0, plan.tiles - 1))
    points = (torch.rand(3, 4, 2, dtype=torch.float64) * 0.98 + 0.01) * plan.tile
    number, local = image_to_tile(tile_to_image(points, plan, tile=tile), plan, scale=plan.place(tile).scale)
    assert (number == tile).all()
    torch.testing.assert_close(local, points)


def test_tiles_cover_the_image() -> None:
    """The corners of the finest tiles form the lines of their grid."""
    plan = DynamicS2().plan(800, 600)
    assert plan.grids[-1] == Grid(3, 4)
    box = torch.tensor([[0, 0], [448, 448]])
    assert tile_to_image(box, plan, tile=0).tolist() == [[0, 0], [800, 600]]
    assert tile_to_image(box, plan, tile=4).tolist() == [[400, 300], [800, 600]]
    assert tile_to_image(box, plan, tile=5).tolist() == [[0, 0], [200, 200]]
    assert tile_to_image(box, plan, tile=16).tolist() == [[600, 400], [800, 600]]


@pytest.mark.parametrize(
    "tiler", [DynamicS2(scales=(64, 128, 192)), DynamicTiles(tile=64), SingleTile(tile=64, mode="pad")]
)
def test_a_mark_is_found_where_the_coordinates_say(tiler: DynamicS2) -> None:
    image = Image.new("RGB", (330, 210), "black")
    ImageDraw.Draw(image).rectangle((240, 40, 259, 59), fill="white")
    tiled = tiler(image)
    for scale in range(len(tiled.plan.levels)):
        tile, local = image_to_tile(torch.tensor([250.0, 50.0]), tiled.plan, scale=scale)
        x, y = local.long().tolist()
        assert tiled.tiles[int(tile), 0, y, x] > 0


def test_edges_and_points_outside() -> None:
    plan = DynamicTiles(tile=10, thumbnail=False, min_tiles=4, max_tiles=4).plan(100, 100)
    assert plan.grids == (Grid(2, 2),)
    tile, local = image_to_tile(torch.tensor([[50.0, 0.0], [100.0, 100.0], [-10.0, 120.0]]), plan)
    assert tile.tolist() == [1, 3, 2]
    assert local.tolist() == [[0, 0], [10, 10], [-2, 14]]


def test_whole_numbers_become_floats_and_shapes_are_kept() -> None:
    plan = SingleTile(tile=10).plan(20, 40)
    points = tile_to_image(torch.tensor([5, 5]), plan, tile=0)
    assert points.tolist() == [10.0, 20.0]
    assert points.dtype == torch.float32
    tile, local = image_to_tile(torch.zeros(0, 2), plan)
    assert tile.shape == (0,)
    assert local.shape == (0, 2)


def test_points_that_cannot_be_are_refused() -> None:
    plan = DynamicTiles().plan(1920, 1080)
    with pytest.raises(GridError, match=r"points of shape \[3\] are not \(x, y\) pairs: pass \[..., 2\]"):
        image_to_tile(torch.zeros(3), plan)
    with pytest.raises(GridError, match="not finite"):
        image_to_tile(torch.tensor([float("nan"), 0.0]), plan)
    with pytest.raises(GridError, match="scale 2 is none of the plan's 1"):
        image_to_tile(torch.zeros(2), plan, scale=2)
    with pytest.raises(GridError, match="tiles 9 to 9 are not all in a plan of 9 tiles: count from 0 to 8"):
        tile_to_image(torch.zeros(2), plan, tile=9)
    with pytest.raises(GridError, match="tiles -1 to 2"):
        tile_to_image(torch.zeros(2, 2), plan, tile=torch.tensor([-1, 2]))
