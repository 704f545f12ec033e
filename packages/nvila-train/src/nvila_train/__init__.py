"""Train NVILA from recipes, and measure it.

Names are imported when they are first used, so that ``nvila-train --help`` does not wait for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from nvila_train.delta_loss.score import delta_loss  # at once: a folder has this name too

if TYPE_CHECKING:
    from nvila_train.data.conversations import ConversationDataset
    from nvila_train.delta_loss.prune import prune
    from nvila_train.packing import Packed, pack
    from nvila_train.recipe import Recipe, Stage
    from nvila_train.recipe_errors import RecipeError
    from nvila_train.trainee import param_groups
    from nvila_train.trainer.loop import train
    from nvila_train.trainer.precision import Precision
    from nvila_train.tuning import tune

__all__ = [
    "ConversationDataset",
    "Packed",
    "Precision",
    "Recipe",
    "RecipeError",
    "Stage",
    "delta_loss",
    "pack",
    "param_groups",
    "prune",
    "train",
    "tune",
]

_MODULES = {
    "ConversationDataset": "data.conversations",
    "Packed": "packing",
    "Precision": "trainer.precision",
    "Recipe": "recipe",
    "RecipeError": "recipe_errors",
    "Stage": "recipe",
    "pack": "packing",
    "param_groups": "trainee",
    "prune": "delta_loss.prune",
    "train": "trainer.loop",
    "tune": "tuning",
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
