"""Pixels as each tower wants them, and its features as one map: transformers, timm and open-clip as oracles."""

from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from nvila_tiling import (
    DynamicS2,
    DynamicTiles,
    GridError,
    SingleTile,
    TilingError,
    TilingProcessor,
    features_of,
    merge_grid,
    merge_scales,
)
from PIL import Image
from timm.data import resolve_model_data_config
from torch import nn
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SiglipVisionModel,
)

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 7}
PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def clip() -> nn.Module:
    return CLIPVisionModel(CLIPVisionConfig(image_size=28, **SMALL)).eval()


def siglip() -> nn.Module:
    return SiglipVisionModel(SiglipVisionConfig(image_size=28, **SMALL)).eval()


@pytest.mark.parametrize("made", [CLIPImageProcessor, SiglipImageProcessor])
@pytest.mark.parametrize(
    "tiler", [SingleTile(tile=28), SingleTile(tile=28, mode="pad"), DynamicTiles(tile=28), DynamicS2(scales=(28, 56))]
)
def test_tiles_have_the_values_of_the_processor(made: Any, tiler: Any) -> None:
    processor = made(do_resize=False, do_center_crop=False) if made is CLIPImageProcessor else made(do_resize=False)
    fitted = tiler.for_processor(processor)
    plain, tiled = tiler(PHOTO), fitted(PHOTO)
    if getattr(tiler, "mode", "") != "pad":  # the colour of the square differs with the mean
        levels = ((plain.tiles + 1) * 127.5).round().to(torch.uint8)
        expected = torch.stack([processor(tile, return_tensors="pt")["pixel_values"][0] for tile in levels])
        assert torch.allclose(tiled.tiles, expected, atol=1e-5)
    assert tiled.mean == tuple(processor.image_mean)
    assert tiled.plan == plain.plan


def test_a_square_around_a_picture_has_the_mean_colour() -> None:
    tiled = SingleTile(tile=28, mode="pad", mean=CLIP_MEAN, std=CLIP_STD)(PHOTO)
    assert tiled.tiles[0, :, 0].abs().max() < 0.02


def test_clip_is_not_shown_the_pixels_of_siglip() -> None:
    tower = clip()
    with pytest.raises(TilingError, match=r"normalised by mean \(0.5, .* trained with .*: use tiler.for_processor"):
        features_of(tower, SingleTile(tile=28)(PHOTO))
    assert features_of(tower, SingleTile(tile=28).for_processor(CLIPImageProcessor())(PHOTO)).shape == (4, 4, 16)


@pytest.mark.parametrize("made", [clip, siglip])
@pytest.mark.parametrize("layer", [-1, -2, 1])
def test_features_of_transformers(made: Any, layer: int) -> None:
    tower = made()
    colours = {"mean": CLIP_MEAN, "std": CLIP_STD} if made is clip else {}
    tiler = DynamicS2(scales=(28, 56), **colours)
    tiled = [tiler(PHOTO), tiler(PHOTO.resize((40, 100)))]
    with torch.no_grad():
        maps = features_of(tower, tiled, layer=layer, batch=3)
        tiles = torch.cat([image.tiles for image in tiled])
        states = tower(pixel_values=tiles, output_hidden_states=True).hidden_states[layer]
    expected = merge_scales(states[:, 1:] if made is clip else states, [image.plan for image in tiled])
    assert [map.shape for map in maps] == [map.shape for map in expected]
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(maps, expected, strict=True))


def test_features_of_transformers_with_the_last_norm_are_its_last_hidden_state() -> None:
    tower, tiled = siglip(), SingleTile(tile=28)(PHOTO)
    with torch.no_grad():
        map = features_of(tower, tiled, layer=-1, norm=True)
        last = tower(pixel_values=tiled.tiles).last_hidden_state
    assert torch.allclose(map, last.reshape(4, 4, 16), atol=1e-5)


def test_another_tile_than_the_tower_was_made_for() -> None:
    with torch.no_grad():
        assert features_of(siglip(), SingleTile(tile=42)(PHOTO)).shape == (6, 6, 16)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_so150m2_patch16_reg1_gap_256"])
def test_features_of_timm(name: str) -> None:
    options = {"img_size": 32, "depth": 3, "embed_dim": 48, "num_heads": 3, "num_classes": 0}
    tower = timm.create_model(name, **options).eval()
    tiler = DynamicS2(scales=(32, 64)).for_processor(resolve_model_data_config(tower))
    tiled = tiler(PHOTO)
    with torch.no_grad():
        map = features_of(tower, tiled, layer=-1, norm=True)
        tokens = tower.forward_features(tiled.tiles)[:, tower.num_prefix_tokens :]
    assert torch.allclose(map, merge_scales(tokens, [tiled.plan])[0], atol=1e-4)
    with torch.no_grad(), pytest.raises(TilingError, match="layer 9 is none of the 3 blocks"):
        features_of(tower, tiled, layer=9)


def test_features_of_open_clip() -> None:
    model = open_clip.model.CLIP(
        embed_dim=16,
        vision_cfg={"image_size": 32, "layers": 3, "width": 32, "head_width": 16, "patch_size": 8},
        text_cfg={"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1},
    ).eval()
    model.visual.image_mean, model.visual.image_std = CLIP_MEAN, CLIP_STD
    seen: list[torch.Tensor] = []
    model.visual.transformer.resblocks[1].register_forward_hook(lambda *given: seen.append(given[2]))
    with pytest.raises(TilingError, match=r"use tiler\.for_processor"):
        features_of(model, SingleTile(tile=32)(PHOTO))
    preprocess = open_clip.image_transform(32, is_train=False, mean=CLIP_MEAN, std=CLIP_STD)
    tiled = SingleTile(tile=32).for_processor(preprocess)(PHOTO)
    with torch.no_grad():
        map = features_of(model, tiled)
    expected = seen[0] if seen[0].shape[0] == 1 else seen[0].transpose(0, 1)
    assert torch.allclose(map, expected[0, 1:].reshape(4, 4, 32), atol=1e-5)


def test_a_tower_in_another_dtype() -> None:
    with torch.no_grad():
        assert features_of(siglip().to(torch.bfloat16), SingleTile(tile=28)(PHOTO)).dtype == torch.bfloat16


@pytest.mark.parametrize(
    "processor", [CLIPImageProcessor(crop_size=28), SiglipImageProcessor(size={"height": 28, "width": 28})]
)
def test_dynamic_s2_in_the_place_of_an_image_processor(processor: Any) -> None:
    tower = clip() if isinstance(processor, CLIPImageProcessor) else siglip()
    tiling = TilingProcessor.like(processor, scales=(1, 2))
    batch = tiling([PHOTO, PHOTO.resize((30, 90))], return_tensors="pt")
    assert (tiling.image_mean, tiling.image_std) == (tuple(processor.image_mean), tuple(processor.image_std))
    with torch.no_grad():
        states = tower(**batch, output_hidden_states=True).hidden_states[-2]
        maps = merge_scales(states[:, -16:], batch.plans)
        expected = features_of(tower, [tiling.tiler(PHOTO), tiling.tiler(PHOTO.resize((30, 90)))])
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(maps, expected, strict=True))
    assert batch.to(dtype=torch.bfloat16).pixel_values.dtype == torch.bfloat16
    assert torch.equal(tiling(PHOTO).pixel_values, tiling.tiler(PHOTO).tiles)


def test_a_stitched_map_is_where_the_tiles_were() -> None:
    tower, tiler = siglip(), DynamicTiles(tile=28, thumbnail=False)
    tiled = tiler(PHOTO)
    with torch.no_grad():
        alone = torch.stack([features_of(tower, SingleTile(tile=28)(tile)) for tile in levels(tiled.tiles)])
        assert torch.allclose(features_of(tower, tiled), merge_grid(alone, tiled.plan.grids[0]), atol=1e-5)


def levels(tiles: torch.Tensor) -> torch.Tensor:
    return ((tiles + 1) * 127.5).round().to(torch.uint8)


def test_what_has_no_map_is_refused() -> None:
    with pytest.raises(TilingError, match="a Linear is no vision tower of transformers, open-clip or timm"):
        features_of(nn.Linear(3, 3), SingleTile(tile=28)(PHOTO))
    with torch.no_grad(), pytest.raises(GridError, match="a plan with a thumbnail has no merged map"):
        features_of(siglip(), DynamicTiles(tile=28)(PHOTO))
    with torch.no_grad(), pytest.raises(TilingError, match="layer 7 is none of the 4 hidden states"):
        features_of(siglip(), SingleTile(tile=28)(PHOTO), layer=7)
    assert features_of(siglip(), []) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": (127.5, 127.5, 127.5), "std": (1, 1, 1)}, "are of values to 255: divide them by 255"),
        ({"std": (0.5, 0.0, 0.5)}, "must be above 0"),
        ({"mean": (0.5, 0.5)}, "must be three numbers"),
    ],
)
def test_colours_that_cannot_be_are_refused(options: Any, message: str) -> None:
    for tiler in (SingleTile, DynamicTiles, DynamicS2):
        with pytest.raises(TilingError, match=message):
            tiler(**options)
    with pytest.raises(TilingError, match="a dict names no mean and deviation"):
        SingleTile().for_processor({})
    with pytest.raises(TilingError, match="names no square size"):
        TilingProcessor.like(object())
