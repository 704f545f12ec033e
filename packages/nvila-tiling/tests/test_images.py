"""Every kind of image: modes, EXIF, arrays, extreme shapes; the two resamplers; images that are refused."""

import io
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nvila_tiling import DynamicS2, DynamicTiles, ImageError, SingleTile, Tiler, TilingError, pixels, tile_many
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

RNG = np.random.default_rng(0)
SMALL_S2 = DynamicS2(scales=(28, 56, 84))


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


def photo(width: int, height: int) -> Image.Image:
    """Smooth colours with some grain."""
    smooth = noise(max(2, width // 16), max(2, height // 16)).resize((width, height), Image.Resampling.BICUBIC)
    grain = RNG.integers(-6, 7, (height, width, 3))
    return Image.fromarray((np.asarray(smooth).astype(np.int16) + grain).clip(0, 255).astype(np.uint8))


def pillow(tiler: Any) -> Any:
    return type(tiler)(**{**vars(tiler), "resampler": "pillow"})


def levels_apart(one: Tensor, other: Tensor) -> Tensor:
    return ((one - other).abs() * 127.5).round()


SIZES = [
    (640, 480),
    (480, 640),
    (1200, 900),
    (1000, 100),
    (100, 1000),
    (20_000, 1),
    (1, 20_000),
    (1, 60),
    (7, 5),
    (5, 7),
    (1, 1),
]


@pytest.mark.parametrize(("size", "draw"), list(product(SIZES, (noise, photo))))
def test_torch_is_at_most_two_levels_from_pillow_in_under_one_percent(size: tuple[int, int], draw: Any) -> None:
    image = draw(*size)
    for tiler in (DynamicS2(scales=(56, 112, 168)), SingleTile(tile=112)):
        apart = levels_apart(tiler(image).tiles, pillow(tiler)(image).tiles)
        assert apart.max() <= 2
        assert (apart > 0).float().mean() < 0.01


@pytest.mark.parametrize("tile", [1, 27, 28, 30])
@pytest.mark.parametrize("height", [28, 400])
def test_the_pillow_resampler_takes_rows_before_columns(tile: int, height: int) -> None:
    """The older order of Pillow's passes, which the reference dates from; written out as two resizes."""
    image = noise(60, height)
    narrow = image.resize((tile, height), Image.Resampling.BICUBIC).resize((tile, tile), Image.Resampling.BICUBIC)
    expected = torch.from_numpy(np.array(narrow)).permute(2, 0, 1) / 127.5 - 1
    assert torch.equal(SingleTile(tile=tile, resampler="pillow")(image).tiles[0], expected)


@pytest.mark.parametrize("resampler", ["pillow", "torch"])
@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGBA", "RGBX", "RGBa", "La", "CMYK", "YCbCr", "HSV", "LAB"]
)
def test_every_mode_equals_its_conversion_to_rgb(mode: str, resampler: Any) -> None:
    tiler = SingleTile(tile=28, resampler=resampler)
    source = noise(40, 30)
    if mode in ("RGBA", "RGBa", "LA", "La"):
        source.putalpha(Image.fromarray(RNG.integers(0, 256, (30, 40), dtype=np.uint8)))
    base = {"RGBa": "RGBA", "La": "LA"}.get(mode, mode)
    image = Image.new("LAB", (40, 30), (120, 10, 200)) if mode == "LAB" else source.convert(base).convert(mode)
    expected = image.convert(base).convert("RGB")
    assert torch.equal(tiler(image).tiles, tiler(expected).tiles)


def test_a_palette_with_an_alpha_per_colour_warns_nobody() -> None:
    image = noise(20, 20).quantize(16)
    image.info["transparency"] = bytes(range(16))
    opaque = image.copy()
    del opaque.info["transparency"]
    assert torch.equal(SMALL_S2(image).tiles, SMALL_S2(opaque).tiles)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_sixteen_bits_are_scaled_to_eight(mode: str) -> None:
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    wide = (levels * 257).astype(np.uint16)
    image = {
        "I;16": lambda: Image.fromarray(wide),
        "I;16B": lambda: Image.frombytes("I;16B", (16, 16), wide.astype(">u2").tobytes()),
        "I": lambda: Image.fromarray(wide.astype(np.int32)),
    }[mode]()
    assert image.mode == mode
    grey = Image.fromarray(levels.astype(np.uint8))
    assert torch.equal(SingleTile(tile=16)(image).tiles, SingleTile(tile=16)(grey).tiles)


def test_a_sixteen_bit_file() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8), 65535, dtype=np.uint16)).save(buffer, "PNG")
    with Image.open(buffer) as image:
        assert SingleTile(tile=8)(image).tiles.min() == 1.0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_an_image_upright(orientation: int) -> None:
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    noise(60, 40).save(buffer, "PNG", exif=exif)
    with Image.open(buffer) as image:
        upright = ImageOps.exif_transpose(image)
        stored = image.convert("RGB")
        for tiler, expected in ((SMALL_S2, upright), (DynamicS2(scales=SMALL_S2.scales, exif=False), stored)):
            result = tiler(image)
            assert result.plan.size == expected.size
            assert torch.equal(result.tiles, tiler(np.array(expected)).tiles)


@pytest.mark.parametrize("resampler", ["pillow", "torch"])
def test_arrays_are_the_images_they_hold(resampler: Any) -> None:
    tiler = DynamicTiles(tile=28, resampler=resampler)
    image = noise(50, 31)
    array = np.array(image)
    expected = tiler(image).tiles
    alpha = np.concatenate([array, array[:, :, :1]], axis=2)
    read_only = array.copy()
    read_only.flags.writeable = False
    flipped_twice = array[::-1].copy()[::-1]
    for same in (array, alpha, read_only, flipped_twice, np.asfortranarray(array)):
        assert torch.equal(tiler(same).tiles, expected)
        assert torch.equal(tiler(torch.tensor(same.copy()).permute(2, 0, 1)).tiles, expected)
    grey = np.array(image.convert("L"))
    expected = tiler(image.convert("L")).tiles
    assert torch.equal(tiler(grey).tiles, expected)
    assert torch.equal(tiler(grey[:, :, None]).tiles, expected)
    assert torch.equal(tiler(torch.tensor(grey)[None]).tiles, expected)


def test_an_image_is_left_as_it_was() -> None:
    image, array = noise(40, 30), np.array(noise(40, 30))
    before = image.tobytes(), array.tobytes()
    for tiler in (SMALL_S2, pillow(SMALL_S2), SingleTile(tile=28, mode="pad")):
        tiler(image)
        tiler(array).tiles.zero_()
    assert (image.tobytes(), array.tobytes()) == before


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 90),
    st.integers(1, 90),
    st.sampled_from([SMALL_S2, DynamicTiles(tile=28), SingleTile(tile=28), SingleTile(tile=28, mode="pad")]),
    st.sampled_from(["torch", "pillow"]),
)
def test_the_plan_counts_the_tiles(width: int, height: int, tiler: Any, resampler: str) -> None:
    tiler = type(tiler)(**{**vars(tiler), "resampler": resampler})
    result = tiler(Image.new("RGB", (width, height), (0, 127, 255)))
    assert result.plan == tiler.plan(width, height)
    assert result.tiles.shape == (result.plan.tiles, 3, 28, 28)
    assert result.tiles.dtype == torch.float32
    assert result.tiles.is_contiguous(memory_format=torch.channels_last)
    if not result.plan.pad:
        assert torch.equal(result.tiles.amin((0, 2, 3)), result.tiles.amax((0, 2, 3)))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 400))
def test_padding_in_bands_equals_the_whole_square(width: int, height: int, band_bytes: int) -> None:
    image = noise(width, height)
    side = max(width, height)
    square = Image.new("RGB", (side, side), (127, 127, 127))
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pixels, "BAND_BYTES", band_bytes * 4)
        padded = SingleTile(tile=28, mode="pad", resampler="pillow")(image)
    assert torch.equal(padded.tiles, SingleTile(tile=28, resampler="pillow")(square).tiles)


@pytest.mark.parametrize(
    "tiler", [SMALL_S2, DynamicTiles(tile=28), SingleTile(tile=28), SingleTile(tile=28, mode="pad")]
)
@pytest.mark.parametrize("size", [(20_000, 1), (1, 20_000), (1, 1), (20_000, 20)])
def test_extreme_shapes(tiler: Tiler, size: tuple[int, int]) -> None:
    assert tiler(noise(*size)).plan.size == size


@pytest.mark.parametrize("workers", [1, 3])
def test_a_batch_equals_a_loop(workers: int) -> None:
    images = [noise(30 + index, 50 - index) for index in range(8)]
    batch = tile_many(iter(images), SMALL_S2, workers=workers)
    for result, image in zip(batch, images, strict=True):
        alone = SMALL_S2(image)
        assert result.plan == alone.plan
        assert torch.equal(result.tiles, alone.tiles)


def test_a_batch_reports_its_first_bad_image() -> None:
    with pytest.raises(ImageError, match="a str is not an image"):
        tile_many([noise(5, 5), "receipt.png"], SMALL_S2)  # type: ignore[list-item]
    with pytest.raises(TilingError, match="0 workers tile nothing"):
        tile_many([], SMALL_S2, workers=0)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("receipt.png", "a str is not an image: pass PIL, numpy HWC uint8 or torch CHW uint8"),
        (None, "a NoneType is not an image"),
        (np.zeros((4, 4, 3), np.float32), r"a float32 array of shape \(4, 4, 3\) is not an image: pass uint8"),
        (np.zeros((4, 4, 3), np.uint16), "a uint16 array"),
        (np.zeros((3, 40, 40), np.uint8), r"shape \(3, 40, 40\) is not an image: pass \[H, W, C\]"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"shape \(1, 4, 4, 3\)"),
        (np.zeros((0, 4, 3), np.uint8), "at least one pixel"),
        (torch.zeros(3, 4, 4), r"a torch.float32 tensor of shape \[3, 4, 4\] is not an image: pass torch.uint8"),
        (torch.zeros(4, 4, dtype=torch.uint8), r"a torch.uint8 tensor of shape \[4, 4\]"),
        (torch.zeros(4, 40, 3, dtype=torch.uint8).permute(1, 0, 2), r"pass \[C, H, W\] with 1, 3 or 4 channels"),
        (torch.zeros(3, 0, 4, dtype=torch.uint8), "at least one pixel"),
        (Image.new("RGB", (0, 5)), "an image of 0 x 5 pixels shows nothing"),
        (Image.new("F", (4, 4)), "mode F has no known range"),
        (Image.new("I", (4, 4), 70_000), "values 70000 to 70000 is not 16-bit grey"),
        (Image.new("I", (4, 4), -1), "values -1 to -1"),
    ],
)
@pytest.mark.parametrize("resampler", ["pillow", "torch"])
def test_what_is_not_an_image_is_refused(image: Any, message: str, resampler: Any) -> None:
    for tiler in (DynamicS2(resampler=resampler), SingleTile(mode="pad", resampler=resampler)):
        with pytest.raises(ImageError, match=message):
            tiler(image)


def test_a_truncated_file_is_refused() -> None:
    buffer = io.BytesIO()
    noise(64, 64).save(buffer, "JPEG")
    with (
        Image.open(io.BytesIO(buffer.getvalue()[:-900])) as image,
        pytest.raises(ImageError, match=r"cannot be decoded: .*; save it again or leave it out"),
    ):
        SMALL_S2(image)
