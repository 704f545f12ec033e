"""A recipe without its weights: two steps of every stage on the meta device, where tensors have shapes but no memory.

Everything runs that a real step runs, forward, backward and optimizer, at full size: a shape that does not fit, a part
that is not there or a rate for nothing is found before a node is rented. Data are not read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from nvila_model import NVILA, preset
from nvila_model.network import LOSS_CHUNK, chunk_losses
from nvila_tiling import TilePlan
from torch import Tensor

from nvila_train.nano_recipes import scaffolding
from nvila_train.recipe import Recipe, Stage
from nvila_train.recipe_errors import RecipeError
from nvila_train.run import in_formats
from nvila_train.trainee import Trainee, param_groups
from nvila_train.trainer.optim import Optimizers, clipped, rate_factor
from nvila_train.tuning import tune

STEPS = 2
PICTURE = 4096
"""Side in pixels of the picture that is tiled: large enough for the most tiles."""
SPECIAL = 24
"""Rows of a small vocabulary that its special tokens take, at most."""


@dataclass(frozen=True, kw_only=True)
class DryStage:
    """What a stage would train.

    Attributes:
        trained, parameters: numbers that learn, and all of the model.
        tiles: of the picture.
        positions: of the language model that the picture and the text after it take.
    """

    name: str
    trained: int
    parameters: int
    tiles: int
    positions: int


def dry_run(recipe: Recipe) -> Iterator[DryStage]:
    """Take two steps of every stage. Raises: RecipeError if the sizes are not known without weights."""
    trainee = in_formats(outlined(recipe), recipe)
    for stage in recipe.stage:
        trainee.zero_grad()
        groups = param_groups(trainee, stage.rates, stage.muon)  # pyright: ignore[reportArgumentType]
        optimizer = Optimizers(groups)
        plan = largest(trainee)
        length = stage.budget or trainee.model.context_length
        positions = min(length, trainee.model.image_tokens(plan) + LOSS_CHUNK)
        for step in range(STEPS):
            optimizer.set_rates(rate_factor(step, max(STEPS, stage.steps)))
            optimizer.zero_grad()
            fake_loss(stage, trainee, plan, positions).backward()
            clipped(optimizer.parameters, stage.clip)
            optimizer.step()
        yield DryStage(
            name=stage.name,
            trained=sum(parameter.numel() for parameter in optimizer.parameters),
            parameters=sum(parameter.numel() for parameter in trainee.model.parameters()),
            tiles=plan.tiles,
            positions=positions,
        )


def outlined(recipe: Recipe) -> Trainee:
    """The model that a recipe trains, without memory."""
    if recipe.preset is not None:
        trainee = Trainee(NVILA.outline(preset(recipe.preset)))
        if recipe.tune is not None:  # adapters are the same over four bits and over more
            ways: dict[str, Any] = recipe.tune.model_dump()
            ways["llm"] = "lora" if recipe.tune.llm == "qlora" else recipe.tune.llm
            tune(trainee.model, **ways)
        return trainee
    if recipe.llm is None:
        raise RecipeError(f"recipe {recipe.name} begins with {recipe.init}: name the preset of its sizes to dry-run it")
    model = NVILA.outline(recipe.config(rows=recipe.llm.vocabulary + SPECIAL))
    return Trainee(model, scaffolding(model)).to("meta")


def largest(trainee: Trainee) -> TilePlan:
    """The plan of a picture that takes as many tiles as any."""
    return trainee.processor.tiler.plan(PICTURE, PICTURE)


def fake_loss(stage: Stage, trainee: Trainee, plan: TilePlan, positions: int) -> Tensor:
    """The loss of one conversation about one picture, as far as the stage's objective needs it."""
    model = trainee.model
    tiles = torch.empty(plan.tiles, 3, plan.tile, plan.tile, device="meta")
    if stage.objective == "patches":
        return torch.stack([scores.sum() for scores in trainee.part("patches")(model.vision(tiles)).values()]).sum()
    seen = torch.cat([tokens for parts in model.media_tokens(tiles, [plan]) for tokens in parts])
    if stage.objective == "alignment":
        return seen.sum()
    ids = torch.empty(max(1, positions - len(seen)), dtype=torch.int64, device="meta")
    hidden = model.llm(torch.cat((seen, model.llm.embed_tokens(ids)))[None])[0, -len(ids) :]
    part = hidden[:LOSS_CHUNK], ids[:LOSS_CHUNK]
    return chunk_losses(*part, logits=model.llm.logits, time_tokens=(), time_deviation=1.0).sum()
