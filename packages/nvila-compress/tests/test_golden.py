"""The reference's downsampling projectors and pooled videos, rebuilt on our compressors."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from nvila_compress import SpatialToChannel, SpatioTemporalPool, TemporalAverage
from safetensors.torch import load_file
from torch import Tensor, nn

DOWNSAMPLING = {
    "mlp_downsample": 2,
    "mlp_downsample_2x2_fix": 2,
    "mlp_downsample_3x3_fix": 3,
    "mlp_downsample_3x3_s2": 3,
    "mlp_downsample_3x3_s2_new": 3,
}


def projector(factor: int, tensors: dict[str, Tensor]) -> nn.Sequential:
    """The compressor, then the stored layers: vectors are norms, matrices linear, a GELU in each gap.

    The stored names count the reference's layers, the downsampling being number 0.
    """
    layers: dict[int, nn.Module] = {0: SpatialToChannel(factor)}
    for name, tensor in tensors.items():
        if (match := re.fullmatch(r"(weight\.layers\.(\d+)\.)weight", name)) is None:
            continue
        stem, index = match[1], int(match[2])
        layer = nn.LayerNorm(len(tensor), eps=1e-5) if tensor.ndim == 1 else nn.Linear(*tensor.shape[::-1])
        layer.load_state_dict({"weight": tensor, "bias": tensors[f"{stem}bias"]})
        layers[index] = layer
    return nn.Sequential(*(layers.get(index, nn.GELU()) for index in range(max(layers) + 1)))


@pytest.mark.parametrize("name", DOWNSAMPLING)
def test_projectors(golden: Path, name: str) -> None:
    file = golden / "projectors" / f"{name}.safetensors"
    if not file.is_file():
        pytest.skip(f"no {name} in this golden folder")
    tensors = load_file(file)
    network = projector(DOWNSAMPLING[name], tensors)
    inputs = sorted(key for key in tensors if key.startswith("input"))
    assert inputs
    for key in inputs:
        with torch.no_grad():
            out = network(tensors[key])
        torch.testing.assert_close(out, tensors[key.replace("input", "output")], atol=1e-4, rtol=0, msg=key)


def test_pooled_videos(golden: Path) -> None:
    """The reference's projected frames, pooled here, stand in its media embeddings in the same order."""
    cases = {file: json.loads(file.read_text()) for file in sorted(golden.glob("cases/*/*.json"))}
    frames = projected_frames(cases)
    pooled_cases = 0
    for file, case in cases.items():
        pool = pool_of(golden, file.parent.name, case)
        video = case.get("media", {}).get("video", {})
        tokens = frames.get((file.parent, video.get("pixel_sha256", "")))
        if pool is None or tokens is None or "media_embeds.video.0" not in case["tensors"]:
            continue
        embeds = load_file(file.with_suffix(".safetensors"))["media_embeds.video.0"]
        pooled = pool(tokens)
        if len(pool.sizes) == 1 and pool.sizes[0][1:] == (1, 1):
            torch.testing.assert_close(pooled[0], TemporalAverage(pool.sizes[0][0])(tokens))
        assert_in_order(embeds, [frame for level in pooled for frame in level])
        pooled_cases += 1
    assert pooled_cases


def projected_frames(cases: dict[Path, dict[str, Any]]) -> dict[tuple[Path, str], Tensor]:
    """By checkpoint and pixels, the projector's output for the cases of one video that store it."""
    found: dict[tuple[Path, str], Tensor] = {}
    for file, case in cases.items():
        media = case.get("media", {})
        if list(media) == ["video"] and media["video"]["count"] == 1 and "projector_output.0" in case["tensors"]:
            tensors = load_file(file.with_suffix(".safetensors"))
            found[file.parent, media["video"]["pixel_sha256"]] = tensors["projector_output.0"]
    return found


def pool_of(golden: Path, checkpoint: str, case: dict[str, Any]) -> SpatioTemporalPool | None:
    """The pool of the case's video encoder, if it is one that pools."""
    config = golden / "checkpoints" / checkpoint / "config.json"
    encoder = json.loads(config.read_text()).get("video_encoder", "{}") if config.is_file() else "{}"
    encoder = case.get("config_overrides", {}).get("video_encoder", encoder)
    encoder = json.loads(encoder) if isinstance(encoder, str) else encoder
    return SpatioTemporalPool(encoder["pool_sizes"]) if "pool_sizes" in encoder else None


def assert_in_order(embeds: Tensor, frames: list[Tensor]) -> None:
    """Each frame is a run of rows of ``embeds``, after the one before; what lies between are text tokens."""
    row = 0
    for frame in frames:
        ends = range(row + len(frame), len(embeds) + 1)
        row = next((end for end in ends if (embeds[end - len(frame) : end] - frame).abs().max() < 1e-4), -1)
        assert row >= 0, "a pooled frame is missing, or out of order"
