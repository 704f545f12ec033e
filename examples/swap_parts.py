"""Put a model together by hand, with another compressor than any published one, and run it.

The weights are random, so the answer means nothing; that the parts fit is the point.

uv run python examples/swap_parts.py
"""

import torch
from nvila_compress import SpatialToChannel
from nvila_model import NVILA
from nvila_model.network import Projector, Qwen2, VisionTower
from nvila_tiling import DynamicS2
from PIL import Image

torch.manual_seed(0)
fold = SpatialToChannel(4)  # a sixteenth of the tokens; published models keep a quarter or a ninth
vision = VisionTower.siglip(image_size=56, patch_size=7, width=32, layers=3, heads=2, mlp_width=64)
tiler = DynamicS2(scales=(56, 112), max_tiles=6)
channels = fold.out_channels(vision.width * len(tiler.scales))
model = NVILA(
    vision=vision,
    tiler=tiler,
    compressor=fold,
    projector=Projector(torch.nn.Linear(channels, 48)),
    llm=Qwen2(vocab_size=100, width=48, layers=2, heads=4, kv_heads=2, mlp_width=96),
)

picture = Image.effect_mandelbrot((320, 200), (-2, -1.5, 1, 1.5), 30)
tiled = model.tiler(picture)
with torch.inference_mode():
    (tokens,) = model.encode_images([tiled])[0]
    scores = model.llm.logits(model.llm(tokens[None])[:, -1])
print(tiled.plan.tiles, "tiles ->", len(tokens), "tokens, as counted before:", model.image_tokens(tiled.plan))
print("scores of the next token:", list(scores.shape))
