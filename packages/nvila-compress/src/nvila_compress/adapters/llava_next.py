"""LLaVA-NeXT, LLaVA-OneVision and LLaVA-NeXT-Video: a base tile, then the map of all tiles with newlines.

Counted: the processor derives rows and columns of the map from the picture's size (padding cut off); each call uses
a copy whose ``_get_number_of_features`` counts the blocks after compression. Placed: the host projects and packs as
ever (``pack_image_features``); then each block is compressed on its own grid, base tile and map apart, so that no
fold crosses the edge between them. A folded map has a newline after each folded row; what a chooser keeps of a map
lies on no rows and gets one newline at its end. A video is one block of all its frames, with one newline at the end
in LLaVA-OneVision. Positioned: one after the other, like words.
"""

import copy
import inspect
from collections.abc import Sequence
from math import isqrt
from typing import Any, cast

import torch
from torch import Tensor, nn

from nvila_compress.adapters.after_projector import Override, TokenCompression, replace_features
from nvila_compress.adapters.blocks import Block, out_length
from nvila_compress.adapters.family import Family, Placing
from nvila_compress.adapters.tower_attention import TowerAttention, watch
from nvila_compress.contract import Compressor


class BaseAndMap(Placing):
    """A base tile and a map of tiles.

    Args:
        video: whether the host reads videos.
        ends_with_newline: whether a video ends with a newline.
    """

    def __init__(self, *, video: bool, ends_with_newline: bool = False) -> None:
        self.reads_video = video
        self.ends_with_newline = ends_with_newline

    def gives(self, compressor: Compressor) -> set[str]:
        return {"attention"}

    def tile(self, host: nn.Module, processor: Any) -> tuple[int, int] | None:
        return None

    def count(self, processor: Any, compressor: Compressor, tile: tuple[int, int] | None) -> None:
        original = copy.copy(processor)
        processor._get_number_of_features = CountBlocks(original, compressor)
        if hasattr(processor, "num_image_tokens"):  # OneVision: several pictures in a prompt are base tiles alone
            side = isqrt(processor.num_image_tokens)
            processor.num_image_tokens = out_length(compressor, Block(grid=(side, side)))
        if hasattr(processor, "replace_video_token"):
            processor.replace_video_token = CountFrames(original, compressor, self.ends_with_newline)

    def place(self, host: nn.Module, owner: nn.Module, family: Family, compression: TokenCompression,
              tile: tuple[int, int] | None) -> None:  # fmt: skip
        model: Any = owner
        attention = watch(owner, "vision_tower", compression)
        model.pack_image_features = PackImages(owner, compression, attention)
        if self.reads_video:
            model.get_video_features = VideoFeatures(owner, compression, self.ends_with_newline, attention)


class CountBlocks:
    """``_get_number_of_features`` of a processor: base tile and map, each compressed."""

    def __init__(self, processor: Any, compressor: Compressor) -> None:
        self.processor, self.compressor = processor, compressor
        tokens = getattr(processor, "num_image_tokens", None)
        self.side = None if tokens is None else isqrt(tokens)

    def __call__(self, orig_height: int, orig_width: int, height: int, width: int) -> int:
        from transformers import image_processing_utils

        select_best_resolution: Any = image_processing_utils.select_best_resolution  # pyright: ignore
        processor = self.processor
        best = select_best_resolution([orig_height, orig_width], processor.image_processor.image_grid_pinpoints)
        rows = self.side or height // processor.patch_size
        columns = self.side or width // processor.patch_size
        tokens, newlines = processor._get_unpadded_features(
            orig_height, orig_width, rows, columns, best[0] // height, best[1] // width
        )
        blocks = base_and_map((rows, columns), (newlines, tokens // newlines))
        extra = 0 if self.side else processor.num_additional_image_tokens
        return sum(out_length(self.compressor, block) for block in blocks) + extra


class CountFrames:
    """``replace_video_token`` of a processor: all frames are one block."""

    def __init__(self, processor: Any, compressor: Compressor, newline: bool) -> None:
        self.processor, self.compressor, self.newline = processor, compressor, newline

    def __call__(self, video_inputs: Any, video_idx: int = 0, **kwargs: Any) -> str:
        token: str = self.processor.video_token
        tokens = (
            self.processor.replace_video_token(video_inputs, video_idx=video_idx, **kwargs).count(token) - self.newline
        )
        frames = len(video_inputs["pixel_values_videos"][video_idx])
        return token * out_length(self.compressor, video_block(tokens, frames, self.newline))


def base_and_map(base: tuple[int, int], map_: tuple[int, int]) -> list[Block]:
    return [Block(grid=base), Block(grid=map_, newline=True)]


def video_block(tokens: int, frames: int, newline: bool) -> Block:
    """Frames of equal squares."""
    side = isqrt(tokens // frames)
    assert side * side * frames == tokens
    return Block(grid=(side, side), frames=frames, video=True, tail=int(newline))


class PackImages(Override):
    """``pack_image_features`` of a model, and then each block compressed.

    Where the newlines are is read off what the host itself makes of tokens that are 0 and newlines that are 1.
    """

    def __init__(self, owner: nn.Module, compression: TokenCompression, attention: TowerAttention | None) -> None:
        super().__init__(owner, "pack_image_features", compression)
        self.attention = attention

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, Tensor]:
        pack = self.host
        call = inspect.signature(pack).bind(*args, **kwargs)
        tiles = cast(Sequence[Tensor], call.arguments["image_features"])
        packed: Any
        packed, lengths = pack(*call.args, **call.kwargs)
        call.arguments["image_features"] = [torch.zeros(*tile.shape[:2], 1) for tile in tiles]
        call.arguments["image_newline"] = torch.ones(1)
        marked: Any
        marked, _ = pack(*call.args, **call.kwargs)
        joined = isinstance(packed, Tensor)
        known: list[dict[str, Tensor]] = [{} for _ in tiles]
        if self.attention is not None:
            patches: Any = self.attention.patches()[:, :, None]
            received = patches.split([len(tile) for tile in tiles])
            call.arguments["image_features"] = received
            call.arguments["image_newline"] = received[0].new_zeros(1)
            seen, _ = pack(*call.args, **call.kwargs)
            known = [{"attention": row[:, 0]} for row in (seen.split(lengths.tolist()) if joined else seen)]
        if joined:
            packed, marked = (cast(Any, x).split(lengths.tolist()) for x in (packed, marked))
        out: list[Tensor] = []
        for tokens, marks, tile, context in zip(cast(Sequence[Tensor], packed), marked, tiles, known, strict=True):
            blocks = blocks_of(marks[:, 0].bool().tolist(), len(tile), tile.shape[1])
            out.append(self.compression.sequence(tokens, blocks, **context))
        counts = torch.tensor([len(tokens) for tokens in out], device=out[0].device)
        return (torch.cat(out) if joined else out), counts


def blocks_of(newlines: list[bool], tiles: int, tokens: int) -> list[Block]:
    """The blocks of one image whose newlines are where ``newlines`` says."""
    side = isqrt(tokens)
    if tiles == 1:
        return [Block(grid=(side, side), tail=len(newlines) - tokens)]
    rows = sum(newlines[tokens:])
    return base_and_map((side, side), (rows, (len(newlines) - tokens) // rows - 1))


class VideoFeatures(Override):
    """``get_video_features`` of a model, each video compressed as one block."""

    def __init__(
        self, owner: nn.Module, compression: TokenCompression, newline: bool, attention: TowerAttention | None
    ) -> None:
        super().__init__(owner, "get_video_features", compression)
        self.newline = newline
        self.attention = attention

    def __call__(self, pixel_values_videos: Tensor, *args: Any, **kwargs: Any) -> Any:
        output = self.host(pixel_values_videos, *args, **kwargs)
        frames = pixel_values_videos.shape[1]

        def compress(videos: Tensor) -> Tensor:
            block = video_block(videos.shape[1] - self.newline, frames, self.newline)
            known: list[dict[str, Tensor]] = [{} for _ in videos]
            if self.attention is not None:
                rows = self.pooled()
                known = [{"attention": rows[start : start + frames]} for start in range(0, len(rows), frames)]
            each = zip(videos, known, strict=True)
            return torch.stack([self.compression.block(video, block, context)[0] for video, context in each])

        return replace_features(output, compress)

    def pooled(self) -> Tensor:
        """The attention received, pooled as the host pools the tokens of frames: ``[frames, h*w]``."""
        assert self.attention is not None
        owner: Any = self.owner
        pool = owner.apply_pooling if hasattr(owner, "apply_pooling") else owner.vision_resampler
        return pool(self.attention.patches()[:, :, None])[:, :, 0]
