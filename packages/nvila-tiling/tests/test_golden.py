"""Tiles, grids and merged maps of the reference, for any folder of its structure."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange
from nvila_tiling import DynamicS2, DynamicTiles, Grid, SingleTile, TilePlan, Tiler, merge_scales
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

PARITY: dict[str, Any] = {"resampler": "pillow", "exif": False}


def read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A value set: its JSON and, where there are any, its tensors."""
    tensors = path.with_suffix(".safetensors")
    return json.loads(path.read_text()), load_file(tensors) if tensors.is_file() else {}


def found(golden: Path, pattern: str) -> list[Path]:
    paths = sorted(golden.glob(pattern))
    assert paths, f"the folder of reference values has no {pattern}"
    return paths


def digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


def to_bytes(tiles: Tensor) -> Tensor:
    """Normalised tiles back to uint8 ``[n, h, w, 3]``."""
    return rearrange((tiles + 1) * 127.5, "n c h w -> n h w c").round().to(torch.uint8)


def accepted(entry: dict[str, Any]) -> set[str]:
    """The checksums that a tile set may have: Pillow's before and since 12.2."""
    return {entry[key] for key in ("pixel_sha256", "pillow13_pixel_sha256") if key in entry}


def tiled(golden: Path, entry: dict[str, Any], tiler: Tiler) -> tuple[Tensor, TilePlan]:
    with Image.open(golden / entry["file"]) as image:
        result = tiler(image)
        assert result.plan == tiler.plan(*image.size)
    return result.tiles, result.plan


def check_entry(golden: Path, entry: dict[str, Any], tiler: Tiler) -> Tensor:
    """One image has the reference's tiles, bit for bit."""
    tiles, plan = tiled(golden, entry, tiler)
    assert tiles.dtype == torch.float32
    assert digest(tiles) in accepted(entry), entry["file"]
    assert plan.tiles == len(tiles) == entry.get("tiles", 1)
    if "block_size" in entry:
        assert [plan.output_grid.rows, plan.output_grid.cols] == entry["block_size"]
    assert plan.thumbnail == entry.get("has_thumbnail", plan.thumbnail)
    return to_bytes(tiles)


def check_stored(tensors: dict[str, Tensor], key: str, pixels: Tensor) -> None:
    """Where the set stores the pixels under this key, they are equal."""
    stored = [tensors[name] for name in (key, f"{key}.pillow13") if name in tensors]
    assert not stored or any(torch.equal(pixels.reshape(value.shape), value) for value in stored), key


def s2(values: dict[str, Any]) -> DynamicS2:
    return DynamicS2(scales=tuple(values["s2_scales"]), max_tiles=values["max_tiles"], **PARITY)


def dynamic(values: dict[str, Any]) -> DynamicTiles:
    return DynamicTiles(
        tile=values["image_size"],
        min_tiles=values["min_tiles"],
        max_tiles=values["max_tiles"],
        thumbnail=values.get("use_thumbnail", True),
        **PARITY,
    )


@pytest.mark.parametrize(("pattern", "build"), [("dynamic_s2_*.json", s2), ("dynamic_[0-9]*.json", dynamic)])
def test_tiles(golden: Path, pattern: str, build: Any) -> None:
    for path in found(golden, f"tiling/{pattern}"):
        values, tensors = read(path)
        for entry in values["images"]:
            values.setdefault("min_tiles", 1)
            check_stored(tensors, Path(entry["file"]).stem, check_entry(golden, entry, build(values)))


def test_single(golden: Path) -> None:
    for path in found(golden, "tiling/single_*.json"):
        values, tensors = read(path)
        for entry in values["images"]:
            ratio = entry["image_aspect_ratio"]
            tiler = SingleTile(tile=values["image_size"], mode="pad" if ratio == "pad" else "resize", **PARITY)
            if "upstream_error" in entry:  # nothing to compare with, but we tile what upstream cannot
                assert tiled(golden, entry, tiler)[0].shape == (1, 3, values["image_size"], values["image_size"])
                continue
            tiles, _ = tiled(golden, entry, tiler)
            assert digest(tiles) in accepted(entry), (entry["file"], ratio)
            check_stored(tensors, f"{Path(entry['file']).stem}.{ratio}", to_bytes(tiles))


def test_full_size(golden: Path) -> None:
    for path in found(golden, "tiling/full_*.json"):
        values, tensors = read(path)
        for entry in values["images"]:
            pixels = check_entry(golden, entry, {"dynamic_s2": s2, "dynamic": dynamic}[entry["method"]](values))
            if "pillow13_pixel_sha256" not in entry:
                assert [digest(tile) for tile in pixels] == entry["u8_tile_sha256"]
            side = values["image_size"]
            low, high = (200, 216) if side >= 216 else (0, side)
            crop = pixels[:, low:high, low:high]
            check_stored(tensors, f"{Path(entry['file']).stem}.{entry['method']}.crop16", crop)


def plan_for(setting: str, width: int, height: int) -> TilePlan:
    """The plan of a setting by its name: ``s2_<tile>_[two_scales_]max<n>`` or ``dyn_<tile>_<min>_<max>``."""
    if match := re.fullmatch(r"s2_(\d+)_(two_scales_)?max(\d+)", setting):
        tile, count = int(match[1]), 2 if match[2] else 3
        scales = tuple(tile * (index + 1) for index in range(count))
        return DynamicS2(scales=scales, max_tiles=int(match[3])).plan(width, height)
    match = re.fullmatch(r"dyn_(\d+)_(\d+)_(\d+)", setting)
    assert match, setting
    tiler = DynamicTiles(tile=int(match[1]), min_tiles=int(match[2]), max_tiles=int(match[3]))
    return tiler.plan(width, height)


def test_grids(golden: Path) -> None:
    values, _ = read(golden / "tiling" / "grids.json")
    assert values["entries"]
    for entry in values["entries"]:
        for setting in entry.keys() - {"width", "height"}:
            plan = plan_for(setting, entry["width"], entry["height"])
            grid, expected = plan.grids[-1], entry[setting]
            where = (setting, entry["width"], entry["height"])
            if setting.startswith("s2"):
                assert [grid.rows, grid.cols] == expected, where
            else:
                assert ([grid.cols, grid.rows], plan.tiles) == (expected["grid"], expected["tiles"]), where


def test_pixel_values(golden: Path) -> None:
    """All 256 values of a pixel become the reference's floats, bit for bit."""
    _, tensors = read(golden / "tiling" / "pixel_lut.json")
    ramp = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16).repeat(3, 1, 1)
    for resampler in ("pillow", "torch"):
        tile = SingleTile(tile=16, resampler=resampler)(ramp).tiles[0]
        assert torch.equal(tile[0].flatten(), tensors["lut"])
        assert torch.equal(tile[2].flatten(), tensors["lut"])


def merged_cases(golden: Path) -> list[tuple[Path, dict[str, Any], dict[str, Tensor]]]:
    """All cases that store the features of the tiles and the maps that they are merged to."""
    cases = [
        (path, *read(path)) for path in found(golden, "cases/*/*.json") if path.with_suffix(".safetensors").is_file()
    ]
    return [case for case in cases if {"vision_features.0", "merged_features.0"} <= case[2].keys()]


def test_merged_maps(golden: Path) -> None:
    cases = merged_cases(golden)
    assert cases
    for path, values, tensors in cases:
        config = json.loads((golden / "checkpoints" / path.parent.name / "config.json").read_text())
        config |= values.get("config_overrides", {})
        scales = tuple(int(scale) for scale in config["s2_scales"].split(","))
        tiler = DynamicS2(scales=scales, output_scale=config.get("s2_resize_output_to_scale_idx", -1))
        maps = [tensors[key] for key in sorted(tensors) if key.startswith("merged_features.")]
        blocks = values.get("block_sizes") or [None] * len(maps)
        squares = [Grid(scale // scales[0], scale // scales[0]) for scale in scales[:-1]]
        plans = [
            TilePlan(size=(1, 1), tile=scales[0], grids=(*squares, Grid(*block)), output_scale=tiler.output_scale)
            if block
            else tiler.single().plan(1, 1)
            for block in blocks
        ]
        merged = merge_scales(tensors["vision_features.0"], plans)
        grids = [[plan.output_grid.rows, plan.output_grid.cols] for plan in plans]
        assert grids == values["merged_block_sizes"]
        for ours, theirs in zip(merged, maps, strict=True):
            torch.testing.assert_close(rearrange(ours, "h w c -> 1 c h w"), theirs, atol=1e-6, rtol=1e-6)
