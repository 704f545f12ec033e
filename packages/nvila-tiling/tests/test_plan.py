"""Plans: the laws they keep, ties, and settings that are refused."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nvila_tiling import DynamicS2, DynamicTiles, Grid, GridError, ImageError, SingleTile, TilePlan, TilingError

sizes = st.integers(1, 20_000)


def upstream_grid(width: int, height: int, tile: int, fewest: int, most: int) -> tuple[int, int]:
    """Upstream's choice as (columns, rows), its set and all, written out as an oracle."""
    ratios = {
        (i, j)
        for n in range(fewest, most + 1)
        for i in range(1, n + 1)
        for j in range(1, n + 1)
        if fewest <= i * j <= most
    }
    best, least = (1, 1), float("inf")
    for ratio in sorted(ratios, key=lambda ratio: ratio[0] * ratio[1]):
        difference = abs(width / height - ratio[0] / ratio[1])
        if difference < least:
            best, least = ratio, difference
        elif difference == least and width * height > 0.5 * tile * tile * ratio[0] * ratio[1]:
            best = ratio
    return best


@settings(max_examples=150, deadline=None)
@given(sizes, sizes, st.sampled_from([28, 56, 448]), st.integers(1, 12), st.integers(0, 8))
def test_the_choice_is_upstreams(width: int, height: int, tile: int, fewest: int, more: int) -> None:
    most = fewest + (fewest + 1) // 2 + more
    grid = DynamicTiles(tile=tile, min_tiles=fewest, max_tiles=most).plan(width, height).grids[0]
    assert (grid.cols, grid.rows) == upstream_grid(width, height, tile, fewest, most)


def test_the_choice_is_upstreams_on_ties() -> None:
    """Ratios half way between two candidates, where the order of the candidates could show."""
    rng = random.Random(0)
    for fewest, most in ((1, 12), (1, 6), (4, 9), (9, 12), (2, 2), (1, 1), (8, 12)):
        tiler = DynamicTiles(tile=28, min_tiles=fewest, max_tiles=most)
        for _ in range(150):
            a, b, c, d = (rng.randint(1, 4) for _ in range(4))
            factor = rng.choice([1, 3, 10, 40])
            width, height = (a * d + c * b) * factor, 2 * b * d * factor  # the mean of a/b and c/d
            grid = tiler.plan(width, height).grids[0]
            assert (grid.cols, grid.rows) == upstream_grid(width, height, 28, fewest, most)


def test_a_tie_between_grids_of_one_count_takes_fewer_columns() -> None:
    tiler = DynamicTiles(min_tiles=2, max_tiles=2)
    assert tiler.plan(5, 4).grids == (Grid(2, 1),)
    assert tiler.plan(5000, 4000).grids == (Grid(1, 2),)  # more than half the pixels of the later grid


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, st.integers(9, 20))
def test_dynamic_s2_keeps_its_limits(width: int, height: int, most: int) -> None:
    plan = DynamicS2(max_tiles=most).plan(width, height)
    assert plan.grids[:2] == (Grid(1, 1), Grid(2, 2))
    assert 9 <= plan.grids[2].count <= most
    assert plan.tiles == 5 + plan.grids[2].count
    assert plan.output_grid == plan.grids[2]
    assert plan.merges
    assert plan.media_tokens == 1
    assert not plan.thumbnail


def test_token_counts_and_output_grids() -> None:
    dynamic = DynamicTiles().plan(1920, 1080)
    assert (dynamic.tiles, dynamic.media_tokens, dynamic.thumbnail) == (9, 9, True)
    assert not dynamic.merges
    small = DynamicTiles(max_tiles=1).plan(1920, 1080)
    assert (small.tiles, small.media_tokens, small.thumbnail) == (1, 1, False)
    assert DynamicTiles(thumbnail=False).plan(1920, 1080).tiles == 8
    assert DynamicS2(output_scale=0).plan(1920, 1080).output_grid == Grid(1, 1)
    assert DynamicS2(output_scale=1).plan(1920, 1080).output_grid == Grid(2, 2)
    single = DynamicS2().single().plan(1920, 1080)
    assert (single.tiles, single.media_tokens, single.repeat, single.merges) == (1, 1, 3, True)
    assert single.output_grid == Grid(1, 1)
    assert not SingleTile().plan(1920, 1080).merges


def test_places_follow_the_order_of_tiles() -> None:
    plan = DynamicTiles(max_tiles=6).plan(300, 200)
    assert plan.grids == (Grid(2, 3),)
    assert [plan.place(tile) for tile in range(plan.tiles)] == [
        (0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 0), (0, 1, 1), (0, 1, 2), (1, 0, 0),
    ]  # fmt: skip
    with pytest.raises(GridError, match="tile 7 is not in a plan of 7 tiles: count from 0 to 6"):
        plan.place(7)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DynamicS2(max_tiles=8), "max_tiles 8 is below 9"),
        (lambda: DynamicS2(scales=(448,)), "for one scale use DynamicTiles"),
        (lambda: DynamicS2(scales=(896, 448)), "that grow"),
        (lambda: DynamicS2(scales=(448, 900)), "multiples of the first"),
        (lambda: DynamicS2(output_scale=3), "output_scale 3 names none of 3 scales"),
        (lambda: DynamicS2(resampler="lanczos"), "'lanczos' is not a resampler: use 'torch'"),  # type: ignore[arg-type]
        (lambda: DynamicTiles(min_tiles=0), "min_tiles 0 and max_tiles 12 leave no grid"),
        (lambda: DynamicTiles(min_tiles=5, max_tiles=4), "use 1 <= min_tiles <= max_tiles"),
        (lambda: DynamicTiles(tile=0), "a tile of 0 pixels"),
        (lambda: SingleTile(tile=0), "tile 0 and repeat 1"),
        (lambda: SingleTile(repeat=0), "tile 448 and repeat 0"),
        (lambda: SingleTile(mode="crop"), "'crop' is not a mode of one tile"),  # type: ignore[arg-type]
        (lambda: Grid(0, 1), "a grid of 0 x 1 holds nothing"),
        (lambda: TilePlan(size=(1, 1), tile=1, grids=(Grid(1, 1),), output_scale=1), "output_scale 1 names none"),
    ],
)
def test_settings_that_cannot_be_are_refused(build: object, message: str) -> None:
    assert callable(build)
    with pytest.raises(TilingError, match=message):
        build()


@pytest.mark.parametrize("tiler", [DynamicS2(), DynamicTiles(), SingleTile()])
@pytest.mark.parametrize("size", [(0, 5), (5, 0), (-1, 3)])
def test_empty_images_are_refused(tiler: DynamicS2, size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match="shows nothing: give at least 1 x 1"):
        tiler.plan(*size)
