"""Answer as given conversations do: the ``answers`` objective on data of one's own.

A step takes its samples by number, so that a stopped run goes on with the very next batch and the losses do not depend
on how many processes share it. The samples of a process are packed into rows of a fixed budget of tokens.
"""

from collections.abc import Sequence
from itertools import count

import torch
from nvila_model import ModelInputs, Processor
from torch import Tensor

from nvila_train.data.budget import bins, join, too_long
from nvila_train.data.conversations import ConversationDataset, Sample
from nvila_train.data.reader import Making, Skipped, Skips
from nvila_train.data.workers import Part, PartsAhead
from nvila_train.packing import pack
from nvila_train.trainee import Trainee
from nvila_train.trainer import distributed


class Prepare:
    """A sample as inputs with labels, and how it is named in messages."""

    def __init__(self, processor: Processor) -> None:
        self.processor = processor

    def __call__(self, sample: Sample) -> tuple[str, ModelInputs]:
        return f"{sample.source} row {sample.row}", self.processor.for_training(sample.messages)


class ConversationTask:
    """Batches of given conversations, packed.

    A sample that cannot be used, or is longer than the budget, is reported and missing from its batch. A process left
    with none takes one from further on, since it must take part in the step.

    Args:
        data: the conversations.
        samples: of a step, over all processes.
        budget: tokens of a packed row; None takes the model's context.
        skip: samples that all processes together may leave out.
        workers: processes that prepare the steps to come.
    """

    def __init__(
        self,
        *,
        trainee: Trainee,
        data: ConversationDataset,
        samples: int,
        budget: int | None = None,
        skip: int = 10,
        workers: int = 0,
    ) -> None:
        self.model = trainee.model
        self.make = Making(dataset=data, prepare=Prepare(trainee.processor))
        self.samples = samples
        self.budget = budget or self.model.context_length
        self.skips = Skips(limit=skip)
        self.parts = PartsAhead(self.make_part, workers=workers)

    def batch(self, step: int, rank: int, world: int) -> list[ModelInputs]:
        """The rows of one process, each the samples to be packed together."""
        made = self.parts((step, rank, world))
        kept = [inputs for found in made if (inputs := self.usable(found)) is not None]
        further = count((step + 1) * self.samples + rank)
        while not kept:
            inputs = self.usable(self.make(next(further)))
            kept += [] if inputs is None else [inputs]
        self.skips.together(int(distributed.sum_named({"left out": self.skips.count})["left out"]))
        rows = bins([self.length(inputs) for inputs in kept], self.budget)
        return [join([kept[place] for place in row]) for row in rows]

    def make_part(self, part: Part) -> list[tuple[str, ModelInputs] | Sample | Skipped]:
        """The samples of a part of a batch, each alone."""
        step, rank, world = part
        return [self.make(number) for number in range(step * self.samples + rank, (step + 1) * self.samples, world)]

    def usable(self, made: tuple[str, ModelInputs] | Sample | Skipped) -> ModelInputs | None:
        """The inputs, unless there are none or too many. Warns: SkipWarning. Raises: DataError beyond the limit."""
        assert not isinstance(made, Sample)
        if not isinstance(made, Skipped):
            name, inputs = made
            length = self.length(inputs)
            if length <= self.budget:
                return inputs
            made = Skipped(reason=f"{name}: {too_long(length, self.budget)}")
        self.skips.add(made)
        return None

    def length(self, inputs: ModelInputs) -> int:
        """Positions that one conversation takes."""
        return sum(inputs.token_counts(self.model.image_tokens, self.model.video_tokens))

    def loss(self, batch: Sequence[ModelInputs]) -> tuple[Tensor, int, dict[str, float]]:
        losses = torch.cat([self.row_losses(inputs) for inputs in batch])
        return losses.sum(), len(losses), {}

    def row_losses(self, inputs: ModelInputs) -> Tensor:
        """The loss of every label of a packed row."""
        packed = pack(self.model.embed(inputs, side="right"))
        hidden = self.model.llm(packed.embeds, positions=packed.positions, mask=packed.mask)
        return self.model.label_losses(hidden, packed.labels)
