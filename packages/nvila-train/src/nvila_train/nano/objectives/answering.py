"""Answer questions about pictures and clips: the objective of the last stages."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from nvila_model import Image, ModelInputs, Video
from torch import Tensor

from nvila_train.nano.dialogue import conversation, turns
from nvila_train.nano.scene_stream import SceneStream
from nvila_train.trainee import Trainee


@dataclass(frozen=True, kw_only=True)
class AnswerTask:
    """Batches of conversations about pictures, through the model's own processor.

    A batch is cut into parts of ``together`` conversations, the short ones apart from the long ones, so that little is
    padded.

    Args:
        most: questions a conversation holds at most.
        captions: how often a conversation ends with the whole scene written out.
    """

    trainee: Trainee
    stream: SceneStream
    samples: int
    most: int = 6
    captions: float = 0.0
    together: int = 8

    def batch(self, step: int, rank: int, world: int) -> list[ModelInputs]:
        numbers = range(step * self.samples + rank, (step + 1) * self.samples, world)
        talks = sorted((self.talk(number) for number in numbers), key=length)
        parts = [talks[start : start + self.together] for start in range(0, len(talks), self.together)]
        return [self.trainee.processor.for_training(part) for part in parts]

    def talk(self, number: int) -> list[dict[str, Any]]:
        """The conversation about scene ``number``."""
        rng = self.stream.random(number)
        scene = self.stream.scene(number)
        pairs = turns(scene, rng, most=self.most, captions=self.captions)
        media = Video(scene.clip.frames) if scene.clip else Image(scene.image)
        return conversation(media, pairs)

    def loss(self, batch: Sequence[ModelInputs]) -> tuple[Tensor, int, dict[str, float]]:
        model = self.trainee.model
        losses: list[Tensor] = []
        for inputs in batch:
            fused = model.embed(inputs, side="right")
            assert fused.labels is not None
            losses.append(model.label_losses(model.hidden(fused), fused.labels))
        found = torch.cat(losses)
        return found.sum(), len(found), {}


def length(talk: Sequence[dict[str, Any]]) -> int:
    """Characters of text, which go with the number of tokens."""
    return sum(len(part) for message in talk for part in message["content"] if isinstance(part, str))
