"""Follow one picture through the model, a stage at a time.

uv run python examples/stage_by_stage.py [PICTURE] [MODEL]
"""

import sys
from pathlib import Path

import torch
from nvila_model import NVILA, Image
from nvila_tiling import merge_scales, split_grid

defaults = [str(Path(__file__).with_name("receipt.png")), "nano"]
picture, name = sys.argv[1:3] + defaults[len(sys.argv) - 1 :]

model = NVILA.from_pretrained(name)
with torch.inference_mode():
    image = Image(picture).load()
    tiled = model.tiler(image)
    print("picture ", image.size, "->", tiled.plan.tiles, "tiles of", tiled.plan.tile, "pixels")

    features = model.features(tiled.tiles)
    print("features", list(features.shape), "a patch of a tile is a row")

    if tiled.plan.merges:
        (merged,) = merge_scales(features, [tiled.plan])
        print("merged  ", list(merged.shape), "all scales side by side in the channels")
        blocks = split_grid(merged, tiled.plan.output_grid).flatten(1, 2)
    else:
        blocks = features

    grid = model.vision.side, model.vision.side
    tokens = model.project(blocks, grid)
    print("tokens  ", list(tokens.shape), "compressed from", list(blocks.shape))

    whole = torch.cat(model.encode_images([tiled])[0])
    print("in all  ", list(whole.shape), "as the language model reads them:", model.image_tokens(tiled.plan))
