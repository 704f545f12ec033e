"""Tiles, grids and merged maps of the reference, for any folder of its structure."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from nvila_tiling import DynamicS2, DynamicTiles, SingleTile, Tiler
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

PARITY: dict[str, Any] = {"resampler": "pillow", "exif": False}


def read(folder: Path, name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A value set: its JSON and, where there are any, its tensors."""
    tensors = folder / f"{name}.safetensors"
    return json.loads((folder / f"{name}.json").read_text()), load_file(tensors) if tensors.is_file() else {}


def digest(tensor: Tensor) -> str:
    return hashlib.sha256(tensor.contiguous().numpy().tobytes()).hexdigest()


def to_bytes(tiles: Tensor) -> Tensor:
    """Normalised tiles back to uint8 ``[n, h, w, 3]``."""
    return rearrange((tiles + 1) * 127.5, "n c h w -> n h w c").round().to(torch.uint8)


def accepted(entry: dict[str, Any]) -> set[str]:
    """The checksums that a tile set may have: Pillow's before and since 12.2."""
    return {entry[key] for key in ("pixel_sha256", "pillow13_pixel_sha256") if key in entry}


def check_images(golden: Path, name: str, tiler: Tiler) -> None:
    """Every image of a value set has the reference's tiles, bit for bit."""
    values, tensors = read(golden / "tiling", name)
    assert values["images"]
    for entry in values["images"]:
        with Image.open(golden / entry["file"]) as image:
            tiled = tiler(image)
        key = Path(entry["file"]).stem
        assert tiled.plan.tiles == tiled.tiles.shape[0] == entry["tiles"], key
        assert digest(tiled.tiles) in accepted(entry), key
        if "block_size" in entry:
            assert [tiled.plan.output_grid.rows, tiled.plan.output_grid.cols] == entry["block_size"]
        if "has_thumbnail" in entry:
            assert tiled.plan.thumbnail == entry["has_thumbnail"]
        stored = [tensors[k] for k in (key, f"{key}.pillow13") if k in tensors]
        assert not stored or any(torch.equal(to_bytes(tiled.tiles), tiles) for tiles in stored), key


def test_dynamic_s2(golden: Path) -> None:
    for path in sorted((golden / "tiling").glob("dynamic_s2_*.json")):
        values = json.loads(path.read_text())
        check_images(
            golden,
            path.stem,
            DynamicS2(scales=tuple(values["s2_scales"]), max_tiles=values["max_tiles"], **PARITY),
        )


def test_dynamic(golden: Path) -> None:
    for path in sorted((golden / "tiling").glob("dynamic_[0-9]*.json")):
        values = json.loads(path.read_text())
        tiler = DynamicTiles(
            tile=values["image_size"],
            min_tiles=values["min_tiles"],
            max_tiles=values["max_tiles"],
            thumbnail=values["use_thumbnail"],
            **PARITY,
        )
        check_images(golden, path.stem, tiler)


def test_single(golden: Path) -> None:
    for path in sorted((golden / "tiling").glob("single_*.json")):
        values, tensors = read(golden / "tiling", path.stem)
        for entry in values["images"]:
            if "upstream_error" in entry:
                continue
            ratio = entry["image_aspect_ratio"]
            tiler = SingleTile(tile=values["image_size"], mode="pad" if ratio == "pad" else "resize", **PARITY)
            with Image.open(golden / entry["file"]) as image:
                tiles = tiler(image).tiles
            assert digest(tiles) in accepted(entry) or digest(tiles[0]) in accepted(entry), (
                entry["file"],
                ratio,
            )
