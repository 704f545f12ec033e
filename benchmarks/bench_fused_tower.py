"""How near to floats is nano's vision tower in W8A8, layer by layer and with fused seams? On a CPU, in seconds.

Cosine of all features to those of the float32 tower, random pixels, weights rounded to nearest, a scale a token.
Fused kernels compute norm and GELU in float32; layer by layer each rounds to the tower's own type first.

    uv run python benchmarks/bench_fused_tower.py
"""

import copy

import torch
from nvila_kernels import W8A8, quantize_
from nvila_model import NVILA
from nvila_model.quantization.fused_blocks import fuse_
from torch import Tensor


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.double().flatten(), b.double().flatten(), dim=0))


@torch.no_grad()
def main() -> None:
    torch.manual_seed(0)
    tower = NVILA.from_pretrained("nano").vision.eval()
    pixels = torch.rand(4, 3, tower.image_size, tower.image_size) * 2 - 1
    true = tower(pixels)
    print(f"{'type':16} layer by layer     fused")
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model = copy.deepcopy(tower)
        quantize_(model.blocks, W8A8())
        model = model.to(dtype)
        plain = cosine(model(pixels.to(dtype)), true)
        fuse_(model)
        print(f"{dtype!s:16} {plain:14.5f} {cosine(model(pixels.to(dtype)), true):9.5f}")


if __name__ == "__main__":
    main()
