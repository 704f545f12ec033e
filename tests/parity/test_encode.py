"""Images to embeddings alone, tiled and not in one call, against the reference."""

import torch
from nvila_model import Image

KINDS = ("encode",)


@torch.no_grad()
def test_images(golden_case, loaded):
    model = loaded(golden_case, one_tile_for_several_images=True)
    tiled, untiled = model.tiler, model.tiler.single()
    images = [
        (tiled if item["tiled"] else untiled)(Image(golden_case.root / item["image"]).load())
        for item in golden_case.facts["items"]
    ]
    found = [tokens for image in model.encode_images(images) for tokens in image]
    assert [list(tokens.shape) for tokens in found] == golden_case.facts["media_embeds_shapes"]
    for index, tokens in enumerate(found):
        torch.testing.assert_close(tokens, golden_case.tensors[f"media_embeds.image.{index}"], atol=1e-4, rtol=0)
