"""The step that a recipe takes, as far as its cost depends on it."""

from pathlib import Path
from typing import get_args

import torch
from nvila_model import NVILAConfig, list_models, preset

from nvila_train.model_size import description
from nvila_train.recipe import Recipe, Tune, recipe_path
from nvila_train.recipe_errors import RecipeError
from nvila_train.run import frozen_dtype
from nvila_train.trainer.blocks import Recompute
from nvila_train.trainer.precision import WEIGHTS, Precision

Formats = tuple[torch.dtype, torch.dtype]
"""Of weights that learn, and of those that do not."""


def read(name: str, weights: str | None = None) -> tuple[NVILAConfig, Tune, Precision, Recompute, Formats]:
    """The model, what learns, precision, recomputation and the weights' formats.

    Args:
        name: of a recipe, or of a model that learns as a whole, in bfloat16 unless ``weights`` says otherwise.
        weights: goes before what the recipe says.

    Raises: RecipeError.
    """
    if name in list_models() or (name != "nano" and (Path(name) / "config.json").is_file()):
        kind = WEIGHTS.get(weights or "bf16")
        if kind is None:
            raise RecipeError(f"no weights in {weights!r}: choose from {', '.join(WEIGHTS)}")
        return description(name), Tune(vision="full", llm="full"), Precision("fp32"), "none", (kind, kind)
    recipe = Recipe.read(recipe_path(name), weights=weights)
    stages = [stage for stage in recipe.stage if stage.objective == "answers"]
    if not stages:
        raise RecipeError(f"recipe {recipe.name} has no stage that learns answers: only those are estimated")
    rates = stages[-1].rates
    learns = {part: "full" if part in rates else "frozen" for part in ("vision", "llm", "projector")}
    if recipe.preset is not None:
        config = preset(recipe.preset)
    elif recipe.init is not None:
        config = description(recipe.init)
    else:
        config = recipe.config(rows=recipe.llm.vocabulary if recipe.llm else 1)
    formats = WEIGHTS[recipe.weights], frozen_dtype(recipe)
    return config, recipe.tune or Tune.model_validate(learns), recipe.precision, stages[-1].recompute, formats


def recomputation(name: str) -> Recompute:
    """A way to recompute, by its name. Raises: RecipeError."""
    ways: tuple[Recompute, ...] = get_args(Recompute)
    for each in ways:
        if each == name:
            return each
    raise RecipeError(f"cannot recompute {name!r}: choose from {', '.join(ways)}")
