"""Gemma 3: a fixed number of pooled tokens for each picture and crop, which see each other both ways.

Counted: the processor has written the tokens of one picture into the text that replaces it; a copy for one call gets
a shorter one. Placed: after the projector, whose product is with a bare parameter, so that there is no layer to go in
front of. Positioned: one after the other, like words; ``token_type_ids``, from which the model makes the mask in
which a picture's tokens see each other, are made from the placeholders and follow by themselves.
"""

from math import prod
from typing import Any

from torch import nn

from nvila_compress.adapters.blocks import square
from nvila_compress.adapters.tiles import TileCount


class WrittenOut(TileCount):
    """``image_seq_length``, and ``full_image_sequence``, which holds so many placeholders."""

    def grid(self, host: nn.Module, processor: Any) -> tuple[int, int]:
        return square(processor.image_seq_length, "one picture")

    def change(self, processor: Any, grid: tuple[int, int], after: int) -> None:
        token: str = processor.tokenizer.image_token
        processor.image_seq_length = after
        processor.full_image_sequence = processor.full_image_sequence.replace(token * prod(grid), token * after)
