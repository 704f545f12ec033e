"""Mistral 3, and LLaVA with a Pixtral tower: grids of any size, written row by row.

Counted: an image stands in the prompt as rows of placeholders with a break after each and an end after the last; a
folded image has as many rows and columns as are left, and what a chooser keeps makes one row with the end. Placed:
after the projector, each image cut out of the packed row by its size. Positioned: one after the other, like words.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from nvila_compress.adapters.after_projector import Override, TokenCompression, replace_features
from nvila_compress.adapters.blocks import Block
from nvila_compress.adapters.family import Family, Placing
from nvila_compress.contract import Choose, Compressor


class RowsWithBreaks(Placing):
    """Images of any size, a break after each row."""

    def tile(self, host: nn.Module, processor: Any) -> tuple[int, int] | None:
        return None

    def count(self, processor: Any, compressor: Compressor, tile: tuple[int, int] | None) -> None:
        processor.replace_image_token = WriteRows(processor, compressor)
        processor._get_num_multimodal_tokens = CountSizes(processor, compressor)

    def place(self, host: nn.Module, owner: nn.Module, family: Family, compression: TokenCompression,
              tile: tuple[int, int] | None) -> None:  # fmt: skip
        model: Any = owner
        model.get_image_features = Features(owner, "get_image_features", compression)


def written_rows(compressor: Compressor, grid: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns that an image is written in."""
    return compressor.out_grid(grid) if not isinstance(compressor, Choose) else (1, compressor.out_count(grid))


class WriteRows:
    """``replace_image_token``: the rows that are left."""

    def __init__(self, processor: Any, compressor: Compressor) -> None:
        self.processor, self.compressor = processor, compressor

    def __call__(self, image_inputs: Any, image_idx: int, **kwargs: Any) -> str:
        processor = self.processor
        patch = processor.patch_size * processor.spatial_merge_size
        height, width = (int(n) for n in image_inputs["image_sizes"][image_idx])
        rows, columns = written_rows(self.compressor, (height // patch, width // patch))
        row: str = processor.image_token * columns
        return processor.image_break_token.join([row] * rows) + processor.image_end_token


class CountSizes:
    """``_get_num_multimodal_tokens``: placeholders, breaks and ends of pictures of given sizes."""

    def __init__(self, processor: Any, compressor: Compressor) -> None:
        self.processor, self.compressor = processor, compressor
        self.count = processor._get_num_multimodal_tokens

    def __call__(self, image_sizes: Any = None, **kwargs: Any) -> Any:
        data = self.count(image_sizes=image_sizes, **kwargs)
        if image_sizes is not None:
            data.num_image_tokens = [self.tokens(*size) for size in image_sizes]
        return data

    def tokens(self, height: int, width: int) -> int:
        from transformers.models.pixtral import image_processing_pixtral

        get_resize_output_image_size: Any = image_processing_pixtral.get_resize_output_image_size  # pyright: ignore
        patch = self.processor.patch_size * self.processor.spatial_merge_size
        edge = self.processor.image_processor.size["longest_edge"]
        resized = get_resize_output_image_size(torch.empty(3, height, width), (edge, edge), (patch, patch))
        rows, columns = written_rows(self.compressor, (resized[0] // patch, resized[1] // patch))
        return rows * (columns + 1)


class Features(Override):
    """``get_image_features``: each image compressed on its grid."""

    def __call__(self, pixel_values: Tensor, image_sizes: Any = None, **kwargs: Any) -> Any:
        output = self.host(pixel_values, image_sizes=image_sizes, **kwargs | {"return_dict": True})
        config = cast(Any, self.owner).config
        patch = config.vision_config.patch_size * getattr(config, "spatial_merge_size", 1)

        def compress(images: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            sizes = cast(list[tuple[int, int]], torch.as_tensor(image_sizes).tolist())  # pyright: ignore
            blocks = [Block(grid=(height // patch, width // patch)) for height, width in sizes]
            return tuple(self.compression.block(x, block)[0] for x, block in zip(images, blocks, strict=True))

        return replace_features(output, compress)
