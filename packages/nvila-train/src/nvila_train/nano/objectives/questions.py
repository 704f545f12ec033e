"""Answer several questions about one picture or clip, each as if no other had been asked.

In a conversation the later answers can lean on the earlier ones: "the star is red" tells whether there is a red star.
Here the questions share what is seen and nothing else, so that each must be answered by looking; and the picture is
looked at once for all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from nvila_model import Image, ModelInputs, Video
from nvila_model.inputs import IGNORE, IMAGE_TOKEN, VIDEO_TOKEN, LabelledText, label_answers
from nvila_model.network import padded
from torch import Tensor

from nvila_train.nano.dialogue import conversation, turns
from nvila_train.nano.scene_stream import SceneStream
from nvila_train.packing import Branches, Packed
from nvila_train.trainee import Trainee

SHARED = 0
"""The segment that every other may look at: the picture with what stands before it."""
PADDING = -1
"""The segment of padding."""


@dataclass(frozen=True, kw_only=True)
class SharedPictures:
    """Pictures with their questions.

    Attributes:
        inputs: the first question about each picture, as a whole conversation.
        others: ids and labels of what follows the picture in the conversations of the other questions.
    """

    inputs: ModelInputs
    others: tuple[tuple[LabelledText, ...], ...]


@dataclass(frozen=True, kw_only=True)
class QuestionTask:
    """Batches of pictures with questions that know nothing of each other.

    Args:
        most: questions about a picture at most.
        captions: how often the whole scene is asked for as well.
        together: pictures that are run as one padded batch.
    """

    trainee: Trainee
    stream: SceneStream
    samples: int
    most: int = 6
    captions: float = 0.0
    together: int = 8

    def batch(self, step: int, rank: int, world: int) -> list[SharedPictures]:
        numbers = range(step * self.samples + rank, (step + 1) * self.samples, world)
        return [
            self.shared_pictures(numbers[start : start + self.together])
            for start in range(0, len(numbers), self.together)
        ]

    def shared_pictures(self, numbers: Sequence[int]) -> SharedPictures:
        """The scenes of these numbers with their questions."""
        tokenizer = self.trainee.processor.tokenizer
        firsts: list[list[dict[str, object]]] = []
        others: list[tuple[LabelledText, ...]] = []
        for number in numbers:
            rng = self.stream.random(number)
            scene = self.stream.scene(number)
            first, *more = turns(scene, rng, most=self.most, captions=self.captions)
            firsts.append(conversation(Video(scene.clip.frames) if scene.clip else Image(scene.image), [first]))
            token, token_id = (VIDEO_TOKEN, tokenizer.video_id) if scene.clip else (IMAGE_TOKEN, tokenizer.image_id)
            others.append(
                tuple(after(token_id, label_answers(tokenizer, conversation(token, [pair]))) for pair in more)
            )
        return SharedPictures(inputs=self.trainee.processor.for_training(firsts), others=tuple(others))

    def loss(self, batch: Sequence[SharedPictures]) -> tuple[Tensor, int, dict[str, float]]:
        model = self.trainee.model
        losses: list[Tensor] = []
        for shown in batch:
            rows = self.branches(shown)
            hidden = model.llm(rows.embeds, positions=rows.positions, mask=rows.mask)
            losses.append(model.label_losses(hidden, rows.labels))
        found = torch.cat(losses)
        return found.sum(), len(found), {}

    def branches(self, shown: SharedPictures) -> Packed:
        """Look at the pictures and put each one's questions behind it.

        Every question's positions go on from the picture. Shapes: ``[b, t, ...]``, a row for each picture, padded on
        the right.
        """
        model = self.trainee.model
        fused = model.embed(shown.inputs, side="right")
        assert fused.labels is not None
        embeds: list[Tensor] = []
        labels: list[Tensor] = []
        positions: list[Tensor] = []
        segments: list[Tensor] = []
        for row, others in enumerate(shown.others):
            length = fused.lengths[row]
            (slot,) = (slot for slot in shown.inputs.media_plan if slot.row == row)
            tail = len(shown.inputs.input_ids[row]) - 1 - slot.positions[-1]
            seen = length - tail
            branches = Branches(common=seen, rests=(tail, *(len(other.input_ids) for other in others)))
            texts = [model.llm.embed_tokens(self.tensor(other.input_ids)) for other in others]
            embeds.append(torch.cat((fused.embeds[row, :length], *(text.to(fused.embeds.dtype) for text in texts))))
            labels.append(torch.cat((fused.labels[row, :length], *(self.tensor(other.labels) for other in others))))
            positions.append(branches.positions())
            segments.append(branches.segments())
        numbered = padded(segments, PADDING, "right").to(model.device)
        return Packed(
            embeds=padded(embeds, 0.0, "right"),
            labels=padded(labels, IGNORE, "right"),
            positions=padded(positions, 0, "right").to(model.device),
            segments=numbered,
            shared=torch.full_like(numbered, SHARED),
        )

    def tensor(self, numbers: Sequence[int]) -> Tensor:
        """Numbers where the model is."""
        return torch.tensor(numbers, dtype=torch.int64, device=self.trainee.model.device)


def after(token: int, text: LabelledText) -> LabelledText:
    """What follows the one media token of a conversation."""
    start = text.input_ids.index(token) + 1
    return LabelledText(text=text.text, input_ids=text.input_ids[start:], labels=text.labels[start:])
