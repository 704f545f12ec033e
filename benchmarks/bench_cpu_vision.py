"""How fast does a processor look at a tile with 8 bits, and does it see the same?

    uv run python benchmarks/bench_cpu_vision.py [--threads 2] [--layers 26] [--tiles 1] [--repeats 3]

SigLIP so400m/14 at 448 px, random weights, up to the layer that NVILA reads. A few channels of
every norm carry weights some twenty times larger, as trained towers have them; SmoothQuant then folds what the
calibration tiles show into the norms. The float tower and the 8-bit one run in turns, in one process; the best time
counts. The targets of this repository: 1.8 times as fast, and features whose cosine with the float ones is 0.999.
"""

import argparse
import copy
import os
from time import perf_counter
from typing import cast

import torch
from nvila_kernels import W8A8, QuantPolicy
from nvila_kernels.cpu import optimize_
from nvila_model.network.vision import Block, VisionTower
from nvila_model.quantization.blocks import SIGLIP_FOLDS, quantize_blocks
from torch import Tensor
from torch.nn import functional as F

SIZE = 448
SO400M = {"image_size": SIZE, "patch_size": 14, "width": 1152, "heads": 16, "mlp_width": 4304}
OUTLIERS, STRENGTH = 0.005, 20.0


@torch.no_grad()
def add_outliers(tower: VisionTower) -> None:
    """Norm weights with a few channels far above the others, signs at random."""
    generator = torch.Generator().manual_seed(0)
    for block in cast("list[Block]", tower.blocks):
        for norm in (block.norm1, block.norm2):
            width = len(norm.weight)
            drawn = 1 + 0.2 * torch.randn(width, generator=generator)
            chosen = torch.randperm(width, generator=generator)[: max(1, int(OUTLIERS * width))]
            drawn[chosen] *= STRENGTH * (0.5 + torch.rand(len(chosen), generator=generator))
            norm.weight.copy_(drawn)


def quantized(tower: VisionTower, calibration: Tensor) -> VisionTower:
    """A copy in 8 bits, smoothed, on the kernels of this machine."""
    other = copy.deepcopy(tower)
    policy = QuantPolicy((("blocks.*", W8A8()),))
    chain = {f"blocks.{name}": block for name, block in other.blocks.named_children()}
    for _ in quantize_blocks(chain, policy.assign(other), SIGLIP_FOLDS, other, [calibration]):
        pass  # each block is quantized when it is asked for
    kernels = {each.choice.kernel for each in optimize_(other, phases=("prefill",))}
    print("kernels:", ", ".join(sorted(kernels)))
    return other


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=26, help="fewer for a quick look")
    parser.add_argument("--tiles", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    tower = VisionTower(layers=options.layers, **SO400M).eval()
    add_outliers(tower)
    eight = quantized(tower, torch.randn(1, 3, SIZE, SIZE))
    pixels = torch.randn(options.tiles, 3, SIZE, SIZE)
    best = {"float32": float("inf"), "W8A8": float("inf")}
    features: dict[str, Tensor] = {}
    for _ in range(options.repeats):
        for name, model in (("float32", tower), ("W8A8", eight)):
            started = perf_counter()
            with torch.inference_mode():
                features[name] = model(pixels)
            best[name] = min(best[name], perf_counter() - started)
    cosine = F.cosine_similarity(features["float32"], features["W8A8"], dim=-1)
    print(f"{options.layers} layers, {options.tiles} tiles, {options.threads} threads, load {os.getloadavg()[0]:.1f}")
    print(f"float32 {best['float32'] * 1e3:.0f} ms, W8A8 {best['W8A8'] * 1e3:.0f} ms: ", end="")
    print(f"{best['float32'] / best['W8A8']:.2f} x; cosine {cosine.mean():.5f}, the worst patch {cosine.min():.5f}")


if __name__ == "__main__":
    main()
