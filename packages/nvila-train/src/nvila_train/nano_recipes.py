"""What training in general needs of ``nano``: the one module that imports it.

A recipe may draw scenes instead of reading data, and begin with random weights instead of a checkpoint. Both are nano's
way to learn; whoever trains a published model on data of their own needs none of it.
"""

from collections.abc import Callable, Mapping
from typing import Final

from nvila_model.inputs import Tokenizer

from nvila_train.nano.drawing import KINDS
from nvila_train.nano.held_out import held_out, shown
from nvila_train.nano.objectives.alignment import AlignmentTask
from nvila_train.nano.objectives.answering import AnswerTask
from nvila_train.nano.objectives.patches import PatchTask
from nvila_train.nano.objectives.questions import QuestionTask
from nvila_train.nano.objectives.scene_reading import WrittenTask
from nvila_train.nano.random_weights import new_trainee, scaffolding
from nvila_train.nano.scene_stream import SceneStream
from nvila_train.nano.vocabulary import make_tokenizer
from nvila_train.trainee import Trainee
from nvila_train.trainer.parallel import Task

__all__ = ["KINDS", "OBJECTIVES", "held_out", "new_trainee", "new_vocabulary", "scaffolding", "scene_task", "shown"]

VOCABULARY_SCENES = 2500
"""Scenes that the words are taken from."""

OBJECTIVES: Final[Mapping[str, Callable[..., Task]]] = {
    "patches": PatchTask,
    "alignment": AlignmentTask,
    "written": WrittenTask,
    "answers": AnswerTask,
    "questions": QuestionTask,
}
"""What a stage with drawn scenes may learn."""

WITHOUT_TEXT: Final = ("patches", "alignment")
"""Objectives that ask nothing."""


def scene_task(
    objective: str,
    trainee: Trainee,
    *,
    seed: int,
    mix: Mapping[str, float],
    samples: int,
    questions: int,
    captions: float,
) -> Task:
    """The task of an objective on drawn scenes. Args: as in ``Stage``."""
    asks = {} if objective in WITHOUT_TEXT else {"most": questions, "captions": captions}
    stream = SceneStream(seed=seed, mix=mix)
    return OBJECTIVES[objective](trainee=trainee, stream=stream, samples=samples, **asks)


def new_vocabulary(*, seed: int, size: int, context: int) -> Tokenizer:
    """A tokenizer made of what scenes of every kind say."""
    stream = SceneStream(seed=seed, mix=dict.fromkeys(KINDS, 1.0))
    scenes = (stream.scene(number) for number in range(VOCABULARY_SCENES))
    return make_tokenizer(scenes, size=size, context=context)
