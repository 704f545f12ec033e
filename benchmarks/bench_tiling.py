"""How much faster is nvila-tiling than the reference's way, from a decoded image to normalised Dynamic-S2 tiles?

The reference resizes the image to each scale with Pillow, crops the tiles, and sends every tile through a Hugging Face
``SiglipImageProcessor``, which works on numpy arrays in the release that it pins. Newer releases of transformers call
that class ``SiglipImageProcessorPil`` (peer ``pil``) and give its old name to one on torchvision (peer
``torchvision``); both are timed. All run in this process, on one thread, in turns, so that a busy machine slows all
alike; ratios are taken between the fastest rounds and between the medians. Before anything is timed, the tiles are
compared.

    uv run python benchmarks/bench_tiling.py              # about a minute on one core
    uv run python benchmarks/bench_tiling.py --json

The README of nvila-tiling has figures. On an old server core (AVX2 in 128-bit halves) torch's resize alone is 4.7x as
fast as Pillow's for the photo; wider vector units raise both figures for ``torch``.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import PIL
import torch
import transformers
from nvila_tiling import DynamicS2, TilePlan, tile_many
from PIL import Image
from torch import Tensor

TILE = 448
PEERS = {"pil": ("SiglipImageProcessorPil", "SiglipImageProcessor"), "torchvision": ("SiglipImageProcessor",)}


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth colours with grain, as a camera gives."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    grain = rng.integers(-6, 7, (height, width, 3), dtype=np.int16)
    return Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8))


def peers() -> dict[str, Any]:
    """The processors of the installed transformers, with the settings of NVILA's vision tower."""
    settings = {"size": {"height": TILE, "width": TILE}, "resample": 3, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    classes = {
        name: next((getattr(transformers, known) for known in names if hasattr(transformers, known)), None)
        for name, names in PEERS.items()
    }
    if classes["pil"] is classes["torchvision"]:  # an older release has one class, on numpy
        del classes["torchvision"]
    return {name: processor(**settings) for name, processor in classes.items() if processor is not None}


def reference(image: Image.Image, plan: TilePlan, processor: Any) -> Tensor:
    """Upstream's ``dynamic_s2_preprocess`` followed by its processor, tile by tile."""
    image = image.convert("RGB")
    tiles: list[Image.Image] = []
    for grid in plan.grids:
        resized = image.resize((grid.cols * TILE, grid.rows * TILE))
        for row in range(grid.rows):
            for col in range(grid.cols):
                left, top = col * TILE, row * TILE
                tiles.append(resized.crop((left, top, left + TILE, top + TILE)))
    return torch.stack([processor.preprocess(tile, return_tensors="pt")["pixel_values"][0] for tile in tiles])


def race(runners: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each runner in each round; all take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, run in runners.items():
            start = time.perf_counter()
            result = run()
            seconds[name].append(time.perf_counter() - start)
            del result
    return seconds


def compare(image: Image.Image, processors: dict[str, Any]) -> dict[str, Any]:
    """Whether the tiles agree: bits for ``pillow``, levels for ``torch``."""
    plan = DynamicS2().plan(*image.size)
    theirs = reference(image, plan, processors["pil"])
    apart = ((DynamicS2()(image).tiles - theirs).abs() * 127.5).round()
    return {
        "pillow_equal": torch.equal(DynamicS2(resampler="pillow")(image).tiles, theirs),
        "torch_most_levels_apart": int(apart.max()),
        "torch_percent_apart": round(100 * float((apart > 0).float().mean()), 3),
    }


def bench_image(width: int, height: int, rounds: int, processors: dict[str, Any]) -> dict[str, Any]:
    """One image size: milliseconds of each way, and the ratios."""
    image = photo(width, height)
    plan = DynamicS2().plan(width, height)
    ours = {"torch": DynamicS2(), "pillow": DynamicS2(resampler="pillow")}
    runners: dict[str, Callable[[], object]] = {
        **{name: lambda tiler=tiler: tiler(image) for name, tiler in ours.items()},
        **{name: lambda peer=peer: reference(image, plan, peer) for name, peer in processors.items()},
    }
    agreement = compare(image, processors)
    race(runners, 1)
    seconds = race(runners, rounds)
    fastest = {name: min(times) for name, times in seconds.items()}
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    return {
        "width": width,
        "height": height,
        "tiles": plan.tiles,
        **agreement,
        "fastest_ms": {name: round(1000 * value, 1) for name, value in fastest.items()},
        "median_ms": {name: round(1000 * value, 1) for name, value in middle.items()},
        "ratios": {
            f"{name}_vs_{peer}": round(fastest[peer] / fastest[name], 2) for name in ours for peer in processors
        },
        "median_ratios": {
            f"{name}_vs_{peer}": round(middle[peer] / middle[name], 2) for name in ours for peer in processors
        },
    }


def bench_batch(workers: list[int], rounds: int) -> dict[str, Any]:
    """Images a second of ``tile_many`` for eight 640 x 480 images, one thread inside each worker."""
    images = [photo(640, 480, seed) for seed in range(8)]
    runners: dict[str, Callable[[], object]] = {
        str(count): lambda count=count: tile_many(images, DynamicS2(), workers=count) for count in workers
    }
    seconds = race(runners, rounds)
    return {count: round(len(images) / min(times), 1) for count, times in seconds.items()}


def report(result: dict[str, Any]) -> None:
    print(", ".join(f"{key} {value}" for key, value in result["machine"].items()))
    for row in result["images"]:
        print(f"\n{row['width']} x {row['height']}, {row['tiles']} tiles of {TILE} px")
        print(
            f"  pillow equal to pil: {row['pillow_equal']}; torch at most {row['torch_most_levels_apart']} levels apart"
        )
        print(f"  in {row['torch_percent_apart']} % of the values")
        for name, value in row["fastest_ms"].items():
            print(f"  {name:12} {value:8.1f} ms fastest {row['median_ms'][name]:8.1f} ms median")
        for name, value in row["ratios"].items():
            print(f"  {name:24} {value:6.2f}x fastest {row['median_ratios'][name]:6.2f}x median")
    print("\ntile_many, eight images of 640 x 480, torch:")
    for count, rate in result["images_per_second_by_workers"].items():
        print(f"  {count} workers {rate:8.1f} images/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["4000x3000", "640x480"], help="widthxheight")
    parser.add_argument("--rounds", type=int, default=15, help="rounds in which every way takes its turn")
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 2], help="worker threads of tile_many")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    processors = peers()
    sizes = [tuple(int(side) for side in size.split("x")) for size in arguments.sizes]
    result = {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "vectors": torch.backends.cpu.get_cpu_capability(),
            "threads": 1,
            "torch": torch.__version__,
            "pillow": PIL.__version__,
            "transformers": transformers.__version__,
        },
        "peers": {name: type(processor).__name__ for name, processor in processors.items()},
        "images": [bench_image(width, height, arguments.rounds, processors) for width, height in sizes],
        "images_per_second_by_workers": bench_batch(arguments.workers, max(3, arguments.rounds // 3)),
    }
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        report(result)


if __name__ == "__main__":
    main()
