"""Train NVILA from recipes, and measure it."""

from nvila_train.loop import train
from nvila_train.packing import Packed, pack
from nvila_train.recipe import Recipe, RecipeError, Stage
from nvila_train.trainee import param_groups

__all__ = ["Packed", "Recipe", "RecipeError", "Stage", "pack", "param_groups", "train"]
