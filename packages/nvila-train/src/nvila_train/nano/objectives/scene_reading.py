"""Pretraining of the language model: answer questions about scenes that are written out (``scene_text``).

Half of the conversations end with a request for the whole scene. A caption has ten times the labels of an answer, and
it is from captions that the model learns to read; answers alone left it on a plateau.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from nvila_model import ModelInputs
from nvila_model.inputs import IMAGE_TOKEN, VIDEO_TOKEN, LabelledText, MediaSlot, label_answers
from nvila_model.network import fuse
from nvila_tiling import Grid
from torch import Tensor

from nvila_train.nano.dialogue import conversation, turns
from nvila_train.nano.pictures import pictures
from nvila_train.nano.scene_stream import SceneStream
from nvila_train.nano.scene_text import forget, scene_embedding
from nvila_train.trainee import Trainee


@dataclass(frozen=True, kw_only=True)
class WrittenRow:
    """One conversation about a written-out scene.

    Attributes:
        text: ids and labels.
        index: rows of ``WrittenScene``, int64 ``[tiles, t, k]``; a clip has a tile a frame. None where the scene is
            told as plain text.
        grid: of the tiles; of one frame for a clip.
        clip: whether the tiles are frames.
    """

    text: LabelledText
    index: Tensor | None
    grid: Grid
    clip: bool


@dataclass(frozen=True, kw_only=True)
class WrittenTask:
    """Batches of conversations about written-out scenes.

    Args:
        most: questions a conversation holds at most.
        captions: how often a conversation ends with the whole scene written out.
        plain: how often the scene is told as text, from which copying is learnt sooner.
        forgotten: share of the patches' labels that are left out.
    """

    trainee: Trainee
    stream: SceneStream
    samples: int
    most: int = 3
    captions: float = 0.5
    plain: float = 0.0
    forgotten: float = 0.03

    def batch(self, step: int, rank: int, world: int) -> list[WrittenRow]:
        numbers = range(step * self.samples + rank, (step + 1) * self.samples, world)
        return [self.row(number) for number in numbers]

    def row(self, number: int) -> WrittenRow:
        """The conversation about scene ``number``."""
        rng = self.stream.random(number)
        written = scene_embedding(self.trainee)
        shown, scene = pictures(self.stream, number, self.trainee.tiler)
        tokenizer = self.trainee.processor.tokenizer
        pairs = turns(scene, rng, most=self.most, captions=self.captions)
        if rng.random() < self.plain:
            told = label_answers(tokenizer, conversation(f"{scene.text}\n", pairs))
            return WrittenRow(text=told, index=None, grid=shown.grid, clip=shown.clip)
        index = written.index(shown.labels(patch=self.trainee.patch, all_scales=False), shown.grid, whole=shown.clip)
        media = VIDEO_TOKEN if shown.clip else IMAGE_TOKEN
        return WrittenRow(
            text=label_answers(tokenizer, conversation(media, pairs)),
            index=forget(index, written.blank, self.forgotten, rng),
            grid=shown.grid,
            clip=shown.clip,
        )

    def loss(self, batch: Sequence[WrittenRow]) -> tuple[Tensor, int, dict[str, float]]:
        model = self.trainee.model
        images, videos = self.media(batch)
        inputs = self.inputs(batch)
        text = [model.llm.embed_tokens(ids) for ids in inputs.input_ids]
        fused = fuse(inputs, text, images, videos, side="right")
        assert fused.labels is not None
        losses = model.label_losses(model.hidden(fused), fused.labels)
        return losses.sum(), len(losses), {}

    def media(self, batch: Sequence[WrittenRow]) -> tuple[list[list[Tensor]], list[Tensor]]:
        """What stands in place of each image, and of each clip: ``[t, d]``, pooled and framed as usual."""
        model, written = self.trainee.model, scene_embedding(self.trainee)
        shown = [(row, row.index) for row in batch if row.index is not None]
        if not shown:
            return [], []
        embeds = written(torch.cat([index for _, index in shown])).split([len(index) for _, index in shown])
        across = written.side // written.fold
        images: list[list[Tensor]] = []
        videos: list[Tensor] = []
        for (row, _), tokens in zip(shown, embeds, strict=True):
            if row.clip:
                videos.append(model.video_framing.video(tokens, (across, across), model.llm.embed_tokens))
            else:
                read = written.read_in_order(tokens, row.grid)
                images.append([model.image_framing.frame(read[None], model.llm.embed_tokens)[0]])
        return images, videos

    def inputs(self, batch: Sequence[WrittenRow]) -> ModelInputs:
        """Ids, labels and places of the media; there are no pixels."""
        device = self.trainee.model.device
        return ModelInputs(
            input_ids=tuple(torch.tensor(row.text.input_ids, device=device) for row in batch),
            labels=tuple(torch.tensor(row.text.labels, device=device) for row in batch),
            media_plan=tuple(self.slots(batch)),
        )

    def slots(self, batch: Sequence[WrittenRow]) -> Iterator[MediaSlot]:
        """Where the one medium of each conversation stands."""
        tokenizer = self.trainee.processor.tokenizer
        count = {"image": 0, "video": 0}
        for number, row in enumerate(batch):
            if row.index is None:
                continue
            kind = "video" if row.clip else "image"
            token = tokenizer.video_id if row.clip else tokenizer.image_id
            place = row.text.input_ids.index(token)
            yield MediaSlot(kind=kind, index=count[kind], row=number, positions=(place,))
            count[kind] += 1
