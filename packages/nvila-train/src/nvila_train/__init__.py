"""Train NVILA from recipes, and measure it."""

from nvila_train.data.conversations import ConversationDataset
from nvila_train.delta_loss.prune import prune
from nvila_train.delta_loss.score import delta_loss
from nvila_train.packing import Packed, pack
from nvila_train.recipe import Recipe, RecipeError, Stage
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
