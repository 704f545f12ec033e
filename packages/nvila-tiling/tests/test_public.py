"""The public face of the package."""

import nvila_tiling

PUBLIC = {
    "DynamicS2", "DynamicTiles", "Grid", "GridError", "ImageError", "SingleTile", "TilePlan", "TiledBatch",
    "TiledImage", "Tiler",
    "TilingError",
    "TilingProcessor", "draw_plan",
    "features_of", "image_to_tile", "merge_grid", "merge_scales", "split_grid", "tile_many",
    "tile_to_image",
}  # fmt: skip


def test_public_names_are_frozen() -> None:
    assert set(nvila_tiling.__all__) == PUBLIC
    assert all(getattr(nvila_tiling, name).__doc__ for name in PUBLIC)


def test_errors_are_value_errors() -> None:
    assert issubclass(nvila_tiling.TilingError, ValueError)
    assert issubclass(nvila_tiling.ImageError, nvila_tiling.TilingError)
    assert issubclass(nvila_tiling.GridError, nvila_tiling.TilingError)
