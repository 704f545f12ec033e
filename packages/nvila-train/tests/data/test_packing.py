"""Samples packed into rows of a budget: nothing is lost or padded, and the loss is that of each sample alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nvila_model import ModelInputs
from nvila_model.inputs import read_llava
from nvila_train.conversation_task import ConversationTask
from nvila_train.data import bins, join
from nvila_train.data.record import as_record
from nvila_train.packing import pack
from nvila_train.trainee import Trainee


@given(lengths=st.lists(st.integers(1, 50), max_size=60), budget=st.integers(50, 90))
def test_rows_keep_the_budget_and_every_sample(lengths: list[int], budget: int) -> None:
    rows = bins(lengths, budget)
    assert sorted(place for row in rows for place in row) == list(range(len(lengths)))
    totals = [sum(lengths[place] for place in row) for row in rows]
    assert all(total <= budget for total in totals)
    assert len(rows) <= 11 / 9 * -(-sum(lengths) // budget) + 6 / 9 or sum(lengths) == 0 or no_two_fit(totals, budget)


def no_two_fit(totals: list[int], budget: int) -> bool:
    """What first-fit guarantees whatever the lengths: no two rows could have been one."""
    least = sorted(totals)[:2]
    return len(least) < 2 or sum(least) > budget


def test_bins_by_hand() -> None:
    assert bins([3, 8, 5, 2, 7], 10) == [[1, 3], [0, 4], [2]]
    assert bins([], 10) == []
    with pytest.raises(ValueError, match="11 tokens > the budget of 10: raise the budget, or lower max_tiles"):
        bins([4, 11], 10)


@pytest.fixture
def talks(records: list[dict[str, Any]], pictures: Path) -> list[Any]:
    return [read_llava(as_record(record), folder=pictures) for record in records]


def test_joined_inputs_are_those_of_one_batch(trainee: Trainee, talks: list[Any]) -> None:
    clip = [{"role": "user", "content": [video(), "Go?"]}, {"role": "assistant", "content": "Yes"}]
    talks = [*talks[:3], clip, *talks[3:], clip]
    process = trainee.processor.for_training
    joined, whole = join([process(talk) for talk in talks]), process(talks)
    assert joined.media_plan == whole.media_plan
    assert joined.prompt_text == whole.prompt_text
    for one, other in zip(tensors(joined), tensors(whole), strict=True):
        assert torch.equal(one, other)


def video() -> Any:
    import numpy as np
    from nvila_model import Video

    return Video(np.arange(4 * 9 * 12 * 3, dtype=np.uint8).reshape(4, 9, 12, 3))


def tensors(inputs: ModelInputs) -> list[torch.Tensor]:
    assert inputs.labels is not None
    media = [medium.tiles for medium in (*inputs.images, *inputs.videos)]
    return [*inputs.input_ids, *inputs.labels, *media]


class Given:
    """A dataset that is a list."""

    def __init__(self, samples: list[Any]) -> None:
        self.samples = samples

    def __getitem__(self, number: int) -> Any:
        return self.samples[number]


@pytest.mark.parametrize("budget", [210, 330, 2000])
def test_packed_losses_and_gradients_are_those_of_single_samples(
    trainee: Trainee, talks: list[Any], budget: int
) -> None:
    """Against a plain loop over samples, each alone in its batch, in float64."""
    from nvila_train.data import Sample

    samples = [Sample(messages=talk, source="s", row=row, record={}) for row, talk in enumerate(talks)]
    model = trainee.model.double()
    try:
        data: Any = Given(samples)
        task = ConversationTask(trainee=trainee, data=data, samples=len(samples), budget=budget)
        rows = task.batch(0, 0, 1)
        assert all(sum(inputs.token_counts(model.image_tokens, model.video_tokens)) <= budget for inputs in rows)
        assert (len(rows) == 1) == (budget == 2000)
        found = differentiated(trainee, lambda: task.loss([doubled(inputs) for inputs in rows])[:2])
        alone = [doubled(trainee.processor.for_training(talk)) for talk in talks]

        def loop() -> tuple[torch.Tensor, int]:
            losses = []
            for inputs in alone:
                fused = model.embed(inputs, side="right")
                losses.append(model.label_losses(model.hidden(fused), fused.labels))
            return torch.cat(losses).sum(), sum(len(each) for each in losses)

        expected = differentiated(trainee, loop)
        assert found[1] == expected[1]
        torch.testing.assert_close(found[0], expected[0], rtol=1e-6, atol=0)  # losses are float32
        assert found[2].keys() == expected[2].keys()
        for name, gradient in expected[2].items():
            torch.testing.assert_close(found[2][name], gradient, rtol=1e-4, atol=1e-6)
    finally:
        trainee.model.float()


def doubled(inputs: ModelInputs) -> ModelInputs:
    from dataclasses import replace

    images = tuple(replace(image, tiles=image.tiles.double()) for image in inputs.images)
    return replace(inputs, images=images)


def differentiated(trainee: Trainee, run: Any) -> tuple[torch.Tensor, int, dict[str, torch.Tensor]]:
    trainee.zero_grad()
    loss, count = run()
    loss.backward()
    gradients = {name: value.grad.clone() for name, value in trainee.named_parameters() if value.grad is not None}
    trainee.zero_grad()
    return loss.detach(), count, gradients


def test_no_position_is_padding(trainee: Trainee, talks: list[Any]) -> None:
    """Positions restart with each sample, attention stays within it, and the row is as long as its samples."""
    inputs = trainee.processor.for_training(talks)
    lengths = inputs.token_counts(trainee.model.image_tokens, trainee.model.video_tokens)
    packed = pack(trainee.model.embed(inputs, side="right"))
    assert packed.positions[0].tolist() == [place for length in lengths for place in range(length)]
    assert packed.embeds.shape[1] == sum(lengths)
    blocks = torch.block_diag(*(torch.ones(length, length).tril() for length in lengths))
    assert torch.equal(packed.mask[0, 0], blocks.bool())
