"""Hosts whose every tile has the same number of tokens: LLaVA 1.5, PaliGemma, Idefics, InternVL, Gemma 3 and others.

Counted: the processor has a setting, the tokens of one tile, from which it counts everything (tiles, padding,
truncation); each call uses a copy of the processor with that setting changed. Where there is no setting, runs of
placeholders in the text that stands for an image are shortened. Placed: tiles leave the projector as ``[tiles, tokens,
width]`` (or flat), and go to the placeholders in order. Positioned: one after the other, like words.
"""

import re
from abc import ABC, abstractmethod
from math import prod
from typing import Any, cast

from torch import nn

from nvila_compress.adapters.after_projector import TileHook, TokenCompression, VideoRows
from nvila_compress.adapters.blocks import Block, in_time, out_length, square
from nvila_compress.adapters.family import Family, Placing
from nvila_compress.adapters.tower_attention import watch
from nvila_compress.contract import Compressor


class TileCount(ABC):
    """Where a processor has the number of tokens of one tile."""

    @abstractmethod
    def grid(self, host: nn.Module, processor: Any) -> tuple[int, int]:
        """Rows and columns of one tile. Raises: GridError or ValueError if there is no one grid."""
        ...

    @abstractmethod
    def change(self, processor: Any, grid: tuple[int, int], after: int) -> None:
        """Make the processor write ``after`` tokens for a tile of ``grid``."""
        ...


class CountAttribute(TileCount):
    """One attribute of the processor (``image_seq_len``)."""

    def __init__(self, name: str) -> None:
        self.name = name

    def grid(self, host: nn.Module, processor: Any) -> tuple[int, int]:
        return square(getattr(processor, self.name), "one tile")

    def change(self, processor: Any, grid: tuple[int, int], after: int) -> None:
        setattr(processor, self.name, after)


class Patches(TileCount):
    """LLaVA counts the patches of the size it crops to, plus extra tokens, less a class token that is not read.

    Fewer tokens are a negative number of extra ones. A class token that is read (strategy ``full``) passes.
    """

    def grid(self, host: nn.Module, processor: Any) -> tuple[int, int]:
        images = processor.image_processor
        size = images.crop_size if getattr(images, "do_center_crop", False) else images.size
        if not size or "height" not in size or not size["height"]:
            raise ValueError(f"the processor's image size {size} varies: pass one that crops to a fixed size")
        return size["height"] // processor.patch_size, size["width"] // processor.patch_size

    def change(self, processor: Any, grid: tuple[int, int], after: int) -> None:
        processor.num_additional_image_tokens += after - prod(grid)


class Runs(TileCount):
    """No setting: each run of placeholders in what stands for an image is as many tiles long.

    Args:
        token: the processor's attribute with the placeholder.
        side: the tokens along a tile's side, from the host's configuration and processor.
    """

    def __init__(self, token: str, side: Any) -> None:
        self.token = token
        self.side = side

    def grid(self, host: nn.Module, processor: Any) -> tuple[int, int]:
        side = self.side(host.config, processor)
        return side, side

    def change(self, processor: Any, grid: tuple[int, int], after: int) -> None:
        processor.replace_image_token = ShorterRuns(
            processor.replace_image_token, getattr(processor, self.token), prod(grid), after
        )
        if hasattr(processor, "_get_num_multimodal_tokens"):
            processor._get_num_multimodal_tokens = FewerTokens(processor._get_num_multimodal_tokens, prod(grid) - after)


class ShorterRuns:
    """``replace_image_token`` with ``after`` placeholders for each ``before`` of a run."""

    def __init__(self, replace: Any, token: str, before: int, after: int) -> None:
        self.replace, self.token, self.before, self.after = replace, token, before, after

    def __call__(self, *args: Any, **kwargs: Any) -> str:
        return re.sub(f"(?:{re.escape(self.token)})+", self.shorter, self.replace(*args, **kwargs))

    def shorter(self, run: "re.Match[str]") -> str:
        tiles, rest = divmod(len(run[0]) // len(self.token), self.before)
        if rest:
            raise ValueError(
                f"{rest} tokens are left of whole tiles of {self.before}: pass the processor that belongs to the model"
            )
        return self.token * (tiles * self.after)


class FewerTokens:
    """``_get_num_multimodal_tokens`` with ``fewer`` tokens for each tile."""

    def __init__(self, count: Any, fewer: int) -> None:
        self.count, self.fewer = count, fewer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        data = self.count(*args, **kwargs)
        if "num_image_tokens" in data:
            tiles = zip(data["num_image_tokens"], data["num_image_patches"], strict=True)
            data.num_image_tokens = [tokens - self.fewer * patches for tokens, patches in tiles]
        return data


class FixedTiles(Placing):
    """Every tile, crop or frame has the same tokens and stands alone.

    Args:
        tokens: where the processor has their number.
        tower: the name of the vision tower beside the projector, if its patches are squares of tokens.
        no_video: why a compressor in time cannot be attached.
        reads_video: whether the model has ``get_video_features`` with the frames as rows (Video-LLaVA).
    """

    def __init__(
        self,
        tokens: TileCount,
        *,
        tower: str | None = "vision_tower",
        no_video: str = "has no video",
        reads_video: bool = False,
    ) -> None:
        self.tokens = tokens
        self.tower = tower
        self.no_video = no_video
        self.reads_video = reads_video

    def gives(self, compressor: Compressor) -> set[str]:
        return {"attention"} if self.tower and not in_time(compressor) else set()

    def tile(self, host: nn.Module, processor: Any) -> tuple[int, int] | None:
        return self.tokens.grid(host, processor)

    def count(self, processor: Any, compressor: Compressor, tile: tuple[int, int] | None) -> None:
        assert tile is not None
        if not in_time(compressor):
            self.tokens.change(processor, tile, out_length(compressor, Block(grid=tile)))
        elif hasattr(processor, "replace_video_token"):
            processor.replace_video_token = VideoRuns(processor.replace_video_token, processor.video_token, compressor)

    def place(self, host: nn.Module, owner: nn.Module, family: Family, compression: TokenCompression,
              tile: tuple[int, int] | None) -> None:  # fmt: skip
        assert tile is not None
        if in_time(compression.compressor):  # pyright: ignore[reportArgumentType]
            cast(Any, owner).get_video_features = VideoRows(owner, "get_video_features", compression)
        else:
            attention = watch(owner, self.tower, compression) if self.tower else None
            owner.get_submodule(family.projector).register_forward_hook(TileHook(compression, tile, attention))


class VideoRuns:
    """``replace_video_token`` of a host whose frames are rows of equally many tokens, for a compressor in time."""

    def __init__(self, replace: Any, token: str, compressor: Compressor) -> None:
        self.replace, self.token, self.compressor = replace, token, compressor

    def __call__(self, video_inputs: Any, video_idx: int, **kwargs: Any) -> str:
        text: str = self.replace(video_inputs, video_idx=video_idx, **kwargs)
        frames = len(video_inputs["pixel_values_videos"][video_idx])
        tokens = text.count(self.token) // frames
        block = Block(grid=(1, tokens), frames=frames, video=True)
        return self.token * out_length(self.compressor, block)


def aya_side(config: Any, processor: Any) -> int:
    return processor.img_size // processor.patch_size


def llama4_side(config: Any, processor: Any) -> int:
    vision = config.vision_config
    return round(vision.image_size // vision.patch_size * vision.pixel_shuffle_ratio)
