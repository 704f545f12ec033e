"""Pretraining of the language model: answer questions about scenes that are written out (see ``written``)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from nvila_model.framing import Framing
from nvila_model.fusion import fuse
from nvila_model.inputs import MediaSlot, ModelInputs
from nvila_model.labels import label_answers
from nvila_model.loss import token_losses
from nvila_model.qwen2 import Qwen2
from nvila_model.tokenizer import IMAGE_TOKEN, VIDEO_TOKEN, Tokenizer
from nvila_tiling import DynamicS2, Grid
from torch import Tensor, nn

from nvila_train.acting import act
from nvila_train.conversation import conversation, turns
from nvila_train.stream import SceneStream
from nvila_train.targets import PatchLabels, patch_labels
from nvila_train.written import WrittenScene, forget, largest


class BlindModel(nn.Module):
    """A language model that reads written-out scenes instead of pictures."""

    def __init__(self, llm: Qwen2, scene: WrittenScene, *, image: Framing, video: Framing) -> None:
        super().__init__()
        self.llm, self.scene = llm, scene
        self.image_framing, self.video_framing = image, video

    def losses(self, batch: "WrittenBatch") -> Tensor:
        """The loss of every label, float32 ``[labels]``."""
        inputs, llm = batch.inputs, self.llm
        flat = self.scene(torch.cat(batch.indices)) if batch.indices else torch.empty(0)
        stacks = iter(flat.split([len(index) for index in batch.indices]))
        images: list[list[Tensor]] = []
        videos: list[Tensor] = []
        for grid, frames in batch.shapes:
            if frames:
                tokens = next(stacks)
                videos.append(self.video_framing.video(tokens, (self.across, self.across), llm.embed_tokens))
            else:
                tokens = self.scene.read_in_order(next(stacks), grid)
                images.append([self.image_framing.frame(tokens[None], llm.embed_tokens)[0]])
        text = [llm.embed_tokens(ids) for ids in inputs.input_ids]
        fused = fuse(inputs, text, images, videos, side="right")
        assert fused.labels is not None
        return token_losses(llm(fused.embeds), fused.labels, llm.logits)

    @property
    def across(self) -> int:
        return self.scene.side // self.scene.fold


@dataclass(frozen=True, kw_only=True)
class WrittenBatch:
    """Conversations about written-out scenes.

    Attributes:
        inputs: ids, labels and places of the media; no pixels.
        indices: rows of ``WrittenScene`` for each medium, ``[tiles, t, k]``; a clip has a tile a frame.
        shapes: the grid of each medium, and its number of frames (0 for an image).
    """

    inputs: ModelInputs
    indices: list[Tensor]
    shapes: list[tuple[Grid, int]]


@dataclass(frozen=True, kw_only=True)
class LanguageTask:
    """Batches of conversations about written-out scenes; longer and shorter ones in batches of their own.

    ``bucket`` batches are drawn at once and sorted by length, so that little is padded.
    """

    model: BlindModel
    tokenizer: Tokenizer
    stream: SceneStream
    tiler: DynamicS2
    patch: int
    samples: int
    most: int = 4
    captions: float = 0.15
    forgotten: float = 0.03

    def batch(self, step: int, rank: int, world: int) -> WrittenBatch:
        numbers = range(step * self.samples + rank, (step + 1) * self.samples, world)
        return self.collate([self.row(number) for number in numbers])

    def row(self, number: int) -> tuple[Any, Tensor, tuple[Grid, int]]:
        """Ids and labels, rows of the written scene, and its shape."""
        rng = self.stream.random(number)
        kind = self.stream.kind(number)
        if kind == "clips":
            scene = act(rng)
            plan = self.tiler.single().plan(*scene.frames[0].image.size)
            labels = PatchLabels.join([patch_labels(frame, plan, patch=self.patch) for frame in scene.frames])
            index = self.model.scene.index(labels, plan.grids[0], whole=True)
            shape, media = (plan.grids[0], len(scene.frames)), VIDEO_TOKEN
        else:
            scene = self.stream.scene(number)
            plan = self.tiler.plan(*scene.image.size)
            labels = largest(patch_labels(scene, plan, patch=self.patch), plan)
            index = self.model.scene.index(labels, plan.grids[-1], whole=False)
            shape, media = (plan.grids[-1], 0), IMAGE_TOKEN
        pairs = turns(scene, rng, most=self.most, captions=self.captions)
        text = label_answers(self.tokenizer, conversation(media, pairs))
        return text, forget(index, self.model.scene.blank, self.forgotten, rng), shape

    def collate(self, rows: Sequence[tuple[Any, Tensor, tuple[Grid, int]]]) -> WrittenBatch:
        slots: list[MediaSlot] = []
        counts = {"image": 0, "video": 0}
        media = {self.tokenizer.token_to_id(IMAGE_TOKEN): "image", self.tokenizer.token_to_id(VIDEO_TOKEN): "video"}
        for number, (text, _, _) in enumerate(rows):
            for place, token in enumerate(text.input_ids):
                if token in media:
                    kind = media[token]
                    slots.append(MediaSlot(kind=kind, index=counts[kind], row=number, positions=(place,)))
                    counts[kind] += 1
        inputs = ModelInputs(
            input_ids=tuple(torch.tensor(text.input_ids) for text, _, _ in rows),
            labels=tuple(torch.tensor(text.labels) for text, _, _ in rows),
            media_plan=tuple(slots),
        )
        return WrittenBatch(inputs=inputs, indices=[row[1] for row in rows], shapes=[row[2] for row in rows])

    def loss(self, batch: WrittenBatch) -> tuple[Tensor, int, Mapping[str, float]]:
        losses = self.model.losses(batch)
        return losses.sum(), len(losses), {}
