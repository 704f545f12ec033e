"""The drawn plan: its colours, its sizes, and images that are not the plan's."""

import numpy as np
import pytest
from nvila_tiling import DynamicS2, DynamicTiles, GridError, SingleTile, Tiler, draw_plan
from nvila_tiling.draw import COLOURS
from PIL import ExifTags, Image, ImageColor


def colours(picture: Image.Image) -> set[tuple[int, ...]]:
    return {tuple(rgb) for _, rgb in picture.getcolors(2**24) or ()}


@pytest.mark.parametrize(
    "tiler", [DynamicS2(), DynamicTiles(), SingleTile(), SingleTile(mode="pad"), DynamicS2().single()]
)
@pytest.mark.parametrize("size", [(640, 480), (480, 640), (1, 1), (20_000, 3), (3, 2000)])
def test_every_scale_has_its_colour(tiler: Tiler, size: tuple[int, int]) -> None:
    plan = tiler.plan(*size)
    picture = draw_plan(Image.new("RGB", size, "grey"), plan)
    assert picture.mode == "RGB"
    assert 500 < max(picture.size) < 1300
    shown = colours(picture)
    for level, colour in enumerate(COLOURS):
        assert (ImageColor.getrgb(colour) in shown) == (level < len(plan.levels))


def test_a_turned_image_is_drawn_as_the_plan_has_it() -> None:
    image = Image.new("RGB", (60, 40))
    image.getexif()[ExifTags.Base.Orientation] = 6
    upright = draw_plan(image, DynamicS2().plan(40, 60))
    stored = draw_plan(image, DynamicS2().plan(60, 40))
    assert upright.width < upright.height
    assert stored.width > stored.height


def test_another_images_plan_is_refused() -> None:
    with pytest.raises(GridError, match="the image has 60 x 40 pixels, the plan is for 40 x 50"):
        draw_plan(np.zeros((40, 60, 3), np.uint8), DynamicS2().plan(40, 50))
