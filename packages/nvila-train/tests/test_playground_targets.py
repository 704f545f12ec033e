"""Per-patch classes against hand-placed characters and a slow oracle."""

import PIL.Image
import pytest
import torch
from nvila_tiling import DynamicS2
from nvila_train.nano.drawing import DENSE_CLASSES, IGNORE, Glyph, Object, Question, Scene, draw, patch_targets

TILER = DynamicS2(scales=(64, 128, 192), max_tiles=12)


def scene(*, size=(192, 192), glyphs=(), objects=()) -> Scene:
    return Scene(
        kind="documents",
        image=PIL.Image.new("RGB", size),
        questions=(Question(question="?", answer="!"),),
        text="",
        glyphs=tuple(glyphs),
        objects=tuple(objects),
    )


def named(labels: torch.Tensor) -> list[str]:
    return ["ignore" if label == IGNORE else DENSE_CLASSES[label] for label in labels.flatten().tolist()]


def test_one_character_labels_its_patch_at_the_largest_scale_only() -> None:
    page = scene(glyphs=[Glyph(char="Q", box=(80, 96, 96, 112))])
    labels = patch_targets(page, TILER.plan(192, 192), 16)
    assert labels.shape == (14, 16)
    assert labels.dtype == torch.int64
    assert named(labels[5 + 4, 4 * 2 + 1]) == ["Q"]  # the middle tile of 3x3 holds pixels 64 to 127
    assert (labels[5:] > 0).sum() == 1
    assert not (labels[:5] > 0).any()
    assert (labels[:5] == IGNORE).any()


def test_a_large_shape_is_labelled_at_every_scale() -> None:
    page = scene(objects=[Object(name="star", colour="red", box=(0, 0, 192, 192))])
    labels = patch_targets(page, TILER.plan(192, 192), 16)
    assert set(named(labels)) == {"red star"}


def test_characters_stand_on_top_of_shapes() -> None:
    page = scene(
        objects=[Object(name="bar", colour="blue", box=(0, 0, 192, 192))],
        glyphs=[Glyph(char="7", box=(0, 0, 16, 16))],
    )
    labels = patch_targets(page, TILER.plan(192, 192), 16)
    assert named(labels[5, 0]) == ["7"]
    assert named(labels[5, 1]) == ["blue bar"]


def test_things_without_a_class_are_ignored_under_those_with_one() -> None:
    page = scene(
        objects=[
            Object(name="pie", colour="", box=(0, 0, 192, 192)),
            Object(name="slice", colour="pink", box=(0, 0, 64, 64)),
        ]
    )
    labels = patch_targets(page, TILER.plan(192, 192), 16)
    assert set(named(labels[5])) == {"pink slice"}
    assert set(named(labels[6])) == {"ignore"}


@pytest.mark.parametrize("kind", ["documents", "charts", "shapes"])
def test_every_label_is_under_the_middle_of_its_patch(kind: str) -> None:
    """A slow walk over patches and boxes: a label is the class of some box that reaches the patch's middle half."""
    for seed in range(8):
        drawn = draw(kind, seed=seed)
        width, height = drawn.image.size
        plan = TILER.plan(width, height)
        labels = patch_targets(drawn, plan, 16)
        boxes = [(glyph.char, glyph.box) for glyph in drawn.glyphs]
        boxes += [(f"{thing.colour} {thing.name}", thing.box) for thing in drawn.objects]
        tile = 0
        for grid in plan.grids:
            for row in range(grid.rows):
                for col in range(grid.cols):
                    for index, label in enumerate(named(labels[tile])):
                        x = (col * 4 + index % 4 + 0.5) / (grid.cols * 4) * width
                        y = (row * 4 + index // 4 + 0.5) / (grid.rows * 4) * height
                        dx, dy = width / grid.cols / 16, height / grid.rows / 16
                        under = {
                            name
                            for name, (left, top, right, bottom) in boxes
                            if left < x + dx and right > x - dx and top < y + dy and bottom > y - dy
                        }
                        assert label in under | {"background", "ignore"}
                        assert under or label == "background"
                    tile += 1
        assert tile == plan.tiles == len(labels)


def test_most_characters_are_some_patch() -> None:
    """Seven in ten of the distinct characters on a page are the class of a patch, or reading could not be learned."""
    for seed in range(20):
        drawn = draw("documents", seed=seed)
        labels = set(named(patch_targets(drawn, TILER.plan(*drawn.image.size), 16)))
        printed = {glyph.char for glyph in drawn.glyphs if glyph.char.isalnum()}
        assert len(printed & labels) >= 0.7 * len(printed)


def test_a_tile_that_is_no_multiple_is_refused() -> None:
    with pytest.raises(ValueError, match="tile 64 is no multiple of patch 24: choose a divisor"):
        patch_targets(scene(), TILER.plan(192, 192), 24)
