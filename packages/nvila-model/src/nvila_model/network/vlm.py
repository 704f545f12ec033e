"""The network: a vision tower, a compressor, a projector and a language model, put together.

    tiles -> vision tower -> features -> merge scales -> compressor -> projector -> tokens
          -> placed among the text's embeddings -> language model -> text

Each arrow is a method that can be called, timed and looked at alone. Every part is swappable with anything
that keeps its protocol. Files are not known here: ``nvila_model.NVILA`` loads, saves and answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import torch
from nvila_compress import Compressor
from nvila_tiling import Grid, TiledImage, TilePlan, Tiler, merge_grid, merge_scales, split_grid
from torch import Tensor, nn

from nvila_model.config import NVILAConfig
from nvila_model.inputs.model_inputs import ModelInputs, TiledVideo
from nvila_model.inputs.processor import Processor
from nvila_model.network.framing import Framing
from nvila_model.network.fusion import Fused, fuse
from nvila_model.network.loss import token_losses
from nvila_model.network.masks import padding_mask
from nvila_model.network.qwen2 import Qwen2

VISION_BATCH = 32
"""Tiles that go through the vision tower at once outside training; bounds the memory of long videos."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """What a forward pass gives.

    Attributes:
        logits: ``[b, t, vocabulary]``.
        fused: the embeddings that went in, with their lengths and labels.
        loss: mean over all labels of the batch; None without labels.
    """

    logits: Tensor
    fused: Fused
    loss: Tensor | None = None


class Tower(Protocol):
    """A vision tower: tiles ``[n, 3, s, s]`` -> features ``[n, (s / patch_size)^2, c]``."""

    @property
    def patch_size(self) -> int: ...
    def __call__(self, pixels: Tensor, /) -> Tensor: ...


class VLM(nn.Module):
    """The full vision-language model: from tiles and ids to scores and losses.

    Args:
        vision: tiles ``[n, 3, s, s]`` -> features ``[n, patches, c]``.
        tiler: how images are cut; with Dynamic-S2 the features of all scales are merged by channel.
        compressor: fewer tokens from the features of a tile or block.
        projector: channels of the compressed features -> width of the language model.
        llm: embeddings -> hidden states -> scores.
        processor: messages -> ``ModelInputs``; ``forward`` and ``loss`` work without.
        image_framing, video_framing: tokens around images and frames, and the pooling of videos.
        config: the description to save with.
    """

    def __init__(
        self,
        *,
        vision: Tower,
        tiler: Tiler,
        compressor: Compressor,
        projector: nn.Module,
        llm: Qwen2,
        processor: Processor | None = None,
        image_framing: Framing | None = None,
        video_framing: Framing | None = None,
        config: NVILAConfig | None = None,
    ) -> None:
        super().__init__()
        self.vision: Tower = vision
        self.tiler = tiler
        self.compressor = compressor
        self.projector = projector
        self.llm = llm
        self.processor = processor
        self.image_framing = image_framing or Framing()
        self.video_framing = video_framing or Framing()
        self.config = config
        self.unused: dict[str, Tensor] = {}
        """Tensors that came with the weights and are not used; they are saved with them."""
        self.source: Path | None = None
        """The checkpoint that holds the weights of a model which was optimized at loading."""

    @property
    def device(self) -> torch.device:
        return self.llm.device

    @property
    def context_length(self) -> int:
        """Positions that the language model was made for."""
        return self.config.llm.context_length if self.config else 32768

    # From tiles to tokens

    def features(self, tiles: Tensor) -> Tensor:
        """Tiles through the vision tower. Shapes: ``[n, 3, s, s]`` -> ``[n, patches, c]``."""
        tiles = tiles.to(self.device)
        if torch.is_grad_enabled():
            return self.vision(tiles)
        return torch.cat([self.vision(part) for part in tiles.split(VISION_BATCH)])

    def project(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """Compress and project. Shapes: ``[n, h*w, c]`` on ``grid`` -> ``[n, h'*w', d]``."""
        return self.projector(self.compressor(tokens, grid))

    def media_tokens(self, tiles: Tensor, plans: Sequence[TilePlan]) -> list[list[Tensor]]:
        """Tokens of many images, before framing.

        With Dynamic-S2 one ``[t, d]`` an image: scales merged, cut into blocks, each block projected, the
        blocks put together and read row by row. Otherwise one for each tile.

        Shapes: tiles ``[sum of plan.tiles, 3, s, s]``.
        """
        return self.feature_tokens(self.features(tiles), plans) if plans else []

    def feature_tokens(self, features: Tensor, plans: Sequence[TilePlan]) -> list[list[Tensor]]:
        """The same of what ``features`` gave. Shapes: ``[sum of plan.tiles, patches, c]``."""
        if not all(plan.merges for plan in plans):
            tokens = self.project(features, square(features))
            parts = tokens.split([plan.tiles for plan in plans])
            return [list(part) for part in parts]
        grids = [plan.output_grid for plan in plans]
        maps = merge_scales(features, plans)
        blocks = torch.cat([split_grid(map_, grid) for map_, grid in zip(maps, grids, strict=True)])
        side = (blocks.shape[1], blocks.shape[2])
        tokens = self.project(blocks.flatten(1, 2).to(features.dtype), side)
        rows, columns = self.compressor.out_grid(side)
        tokens = tokens.unflatten(1, (rows, columns))
        parts = tokens.split([grid.count for grid in grids])
        return [[merge_grid(part, grid).flatten(0, 1)] for part, grid in zip(parts, grids, strict=True)]

    def encode_images(self, images: Sequence[TiledImage], features: Tensor | None = None) -> list[list[Tensor]]:
        """For each image what stands in place of its media tokens: ``[t, d]`` for each, framed.

        Args:
            features: of the tiles of all images, where they are known already.
        """
        if not images:
            return []
        if features is None:
            features = self.features(torch.cat([image.tiles for image in images]))
        tokens = self.feature_tokens(features, [image.plan for image in images])
        embedding = self.llm.embed_tokens
        return [[self.image_framing.frame(part[None], embedding)[0] for part in parts] for parts in tokens]

    def encode_video(self, videos: Sequence[TiledVideo], features: Tensor | None = None) -> list[Tensor]:
        """For each video what stands in place of its media token, ``[t, d]``, pooled and framed."""
        if not videos:
            return []
        if features is None:
            features = self.features(torch.cat([video.tiles for video in videos]))
        plans = [video.plan for video in videos for _ in range(video.frames)]
        parts = iter(self.feature_tokens(features, plans))
        encoded: list[Tensor] = []
        for video in videos:
            frames = [tokens for _ in range(video.frames) for tokens in next(parts)]
            encoded.append(self.video_framing.video(torch.stack(frames), self.video_grid(video), self.llm.embed_tokens))
        return encoded

    # Token counts, without computing anything

    def tile_grid(self, plan: TilePlan) -> tuple[int, int]:
        """Rows and columns of tokens that the projector gives for one tile or block of a plan."""
        side = plan.tile // self.vision.patch_size
        return self.compressor.out_grid((side, side))

    def video_grid(self, video: TiledVideo) -> tuple[int, int]:
        rows, columns = self.tile_grid(video.plan)
        blocks = video.plan.output_grid if video.plan.merges else Grid(1, 1)
        return rows * blocks.rows, columns * blocks.cols

    def image_tokens(self, image: TiledImage | TilePlan) -> int:
        """Positions of the language model that one image takes."""
        plan = image if isinstance(image, TilePlan) else image.plan
        rows, columns = self.tile_grid(plan)
        if plan.merges:
            return self.image_framing.image_tokens(rows * columns * plan.output_grid.count)
        return plan.tiles * self.image_framing.image_tokens(rows * columns)

    def video_tokens(self, video: TiledVideo) -> int:
        """Positions of the language model that one video takes."""
        entries = video.frames if video.plan.merges else video.frames * video.plan.tiles
        return self.video_framing.video_tokens(entries, self.video_grid(video))

    # From tokens to scores

    def embed(
        self, inputs: ModelInputs, *, side: Literal["left", "right"] = "left", max_length: int | None = None
    ) -> Fused:
        """Text and media as one padded batch of embeddings."""
        text = [self.llm.embed_tokens(ids.to(self.device)) for ids in inputs.input_ids]
        images, videos = self.encode_images(inputs.images), self.encode_video(inputs.videos)
        return fuse(inputs, text, images, videos, side=side, max_length=max_length)

    def hidden(self, fused: Fused) -> Tensor:
        """Last hidden states of a padded batch. Shapes: ``[b, t, d]`` -> the same."""
        keep = fused.mask
        positions = (keep.cumsum(1) - 1).clamp(min=0)
        return self.llm(fused.embeds, positions=positions, mask=padding_mask(keep))

    def forward(self, inputs: ModelInputs, *, max_length: int | None = None) -> Output:
        """Scores at every position, and the loss if the inputs have labels (see ``loss`` to train)."""
        fused = self.embed(inputs, side="left" if inputs.labels is None else "right", max_length=max_length)
        hidden = self.hidden(fused)
        loss = self.label_losses(hidden, fused.labels).mean() if fused.labels is not None else None
        return Output(logits=self.llm.logits(hidden), fused=fused, loss=loss)

    def loss(self, inputs: ModelInputs, *, max_length: int | None = None) -> Tensor:
        """Mean loss over all labels of the batch; computes scores only where a label stands."""
        fused = self.embed(inputs, side="right", max_length=max_length)
        if fused.labels is None:
            raise ValueError("the inputs have no labels: make them with Processor.for_training")
        return self.label_losses(self.hidden(fused), fused.labels).mean()

    def label_losses(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """The loss of every label in reading order, float32 ``[labels]``."""
        config = self.config
        return token_losses(
            hidden,
            labels,
            self.llm.logits,
            time_tokens=config.time_token_ids if config else (),
            time_deviation=config.soft_ce_std if config else 1.0,
        )

    def needed_processor(self) -> Processor:
        if self.processor is None:
            raise ValueError("this model has no processor: pass one when it is made, or ModelInputs to forward")
        return self.processor


def square(features: Tensor) -> tuple[int, int]:
    side = int(features.shape[1] ** 0.5)
    return side, side
