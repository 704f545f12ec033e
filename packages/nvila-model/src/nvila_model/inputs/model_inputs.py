"""What the processor hands to the model: token ids, tiles, and where the media stand.

One frozen value carries a batch of rows from text and pictures to the network; nothing in it depends on
the network's sizes. Pictures stay with their plan, so the model alone decides how many LLM tokens each
becomes, and ``token_counts`` can answer that question before any of them is computed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from nvila_tiling import TiledImage, TilePlan


@dataclass(frozen=True, kw_only=True)
class TiledVideo:
    """The frames of one video as normalised tiles.

    Attributes:
        tiles: float32 ``[frames * plan.tiles, 3, tile, tile]``, frame after frame, ``(x / 255 - 0.5) / 0.5``.
        frames: frames really decoded.
        timestamps: seconds from the start, one a frame; a frame number where the source has no clock.
        plan: how every frame was tiled.
    """

    tiles: torch.Tensor
    frames: int
    timestamps: tuple[float, ...]
    plan: TilePlan


@dataclass(frozen=True, kw_only=True)
class MediaSlot:
    """Where one image or one video stands.

    Attributes:
        kind: which of ``ModelInputs.images`` and ``ModelInputs.videos`` holds it.
        index: its place there.
        row: the row of the batch it belongs to.
        positions: the places of its media tokens in ``ModelInputs.input_ids[row]``, one for each token
            (a dynamically tiled image has one for each tile, the thumbnail last).
    """

    kind: Literal["image", "video"]
    index: int
    row: int
    positions: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ModelInputs:
    """A batch of conversations, ready for ``NVILA.forward`` and ``NVILA.generate``.

    Attributes:
        input_ids: int64 ``[t]`` a row, not padded; media tokens in place, one or more a medium.
        images: every image of every row, in reading order.
        videos: every video of every row, in reading order.
        media_plan: where each of them stands, in reading order.
        prompt_text: the text of each row after the chat template.
        labels: int64 ``[t]`` a row with -100 where nothing is learnt; None unless asked for.
    """

    input_ids: tuple[torch.Tensor, ...]
    images: tuple[TiledImage, ...] = ()
    videos: tuple[TiledVideo, ...] = ()
    media_plan: tuple[MediaSlot, ...] = ()
    prompt_text: tuple[str, ...] = ()
    labels: tuple[torch.Tensor, ...] | None = None

    def token_counts(
        self,
        image_tokens: Callable[[TiledImage], int],
        video_tokens: Callable[[TiledVideo], int],
    ) -> tuple[int, ...]:
        """The LLM positions that each row takes, given what one image and one video take.

        ``len(input_ids[row]) - media tokens + tokens of the row's media``; the two functions answer for a
        whole image or video, newlines after tiles and frames included. Computes no features.
        """
        counts = [len(ids) for ids in self.input_ids]
        for slot in self.media_plan:
            if slot.kind == "image":
                taken = image_tokens(self.images[slot.index])
            else:
                taken = video_tokens(self.videos[slot.index])
            counts[slot.row] += taken - len(slot.positions)
        return tuple(counts)
