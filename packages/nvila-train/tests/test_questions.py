"""Questions that share a picture against conversations of one question each."""

import pytest
import torch
from nvila_model import NVILA, Image, Video
from nvila_train.nano.dialogue import conversation, turns
from nvila_train.nano.objectives.questions import PADDING, SHARED, QuestionTask
from nvila_train.nano.scene_stream import SceneStream
from nvila_train.trainee import Trainee

STREAM = SceneStream(seed=3, mix={"shapes": 1.0, "documents": 1.0, "charts": 1.0, "clips": 1.0})


@pytest.fixture(scope="module")
def task() -> QuestionTask:
    return QuestionTask(trainee=Trainee(NVILA.from_pretrained("nano")), stream=STREAM, samples=5, together=3)


def test_each_question_is_the_only_one(task: QuestionTask):
    """The loss is that of as many conversations, every one with the picture and one question."""
    model, processor = task.trainee.model, task.trainee.processor
    expected: list[torch.Tensor] = []
    for number in range(5):
        scene = STREAM.scene(number)
        media = Video(scene.clip.frames) if scene.clip else Image(scene.image)
        for pair in turns(scene, STREAM.random(number), most=6, captions=0.0):
            fused = model.embed(processor.for_training([conversation(media, [pair])]), side="right")
            assert fused.labels is not None
            expected.append(model.label_losses(model.hidden(fused), fused.labels))
    total, labels, _ = task.loss(task.batch(0, 0, 1))
    assert labels == sum(len(losses) for losses in expected)
    torch.testing.assert_close(total, torch.cat(expected).sum())
    assert len(expected) > 2 * 5


def test_processes_share_the_pictures(task: QuestionTask):
    """Two processes ask what one would, none twice."""
    total, labels, _ = task.loss(task.batch(0, 0, 1))
    shares = [task.loss(task.batch(0, rank, 2)) for rank in range(2)]
    assert sum(share[1] for share in shares) == labels
    torch.testing.assert_close(sum(share[0] for share in shares), total)


def test_what_a_question_may_look_at(task: QuestionTask):
    rows = task.branches(task.batch(0, 0, 1)[0])
    row = rows.segments[0].tolist()
    first, second, padding = (row.index(number) if number in row else None for number in (1, 2, PADDING))
    assert second is not None
    mask = rows.mask[0, 0]
    seen = row.count(SHARED)
    assert mask[second, :seen].all()
    assert not mask[second, first:second].any()
    assert rows.positions[0, second] == rows.positions[0, first] == seen
    assert padding is None or not mask[:padding, padding:].any()
