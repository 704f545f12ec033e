"""Run a recipe: its stages one after the other, each in its own folder.

    <out>/tokenizer/            made first
    <out>/<n>-<stage>/          state/ (to resume from), log.jsonl
    <out>/model/                the checkpoint, in upstream's layout, written after every stage
    <out>/adapter/              in its place, what was learnt by a recipe with [tune], in PEFT's layout

A stage that is complete is not run again; one that was stopped goes on at its next step.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from nvila_model import NVILA
from nvila_model.inputs import Tokenizer

from nvila_train.conversation_task import ConversationTask
from nvila_train.data.conversations import ConversationDataset
from nvila_train.nano_recipes import new_trainee, new_vocabulary, scene_task
from nvila_train.recipe import Recipe, Stage, check_budget, longest
from nvila_train.recipe_errors import RecipeError
from nvila_train.trainee import Trainee, learning_parts, param_groups
from nvila_train.trainer import distributed
from nvila_train.trainer.checkpoint import finished
from nvila_train.trainer.device import chosen
from nvila_train.trainer.loop import train
from nvila_train.trainer.meter import Meter
from nvila_train.trainer.parallel import Spread, Task
from nvila_train.trainer.precision import WEIGHTS
from nvila_train.tuning import is_tuned, learnable, save_adapter, tune


def run(
    recipe: Recipe,
    out: Path,
    *,
    only: str | None = None,
    report: Callable[[dict[str, Any]], None] | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Trainee:
    """Run every stage that is not complete; the result is also saved, as ``out/model`` or ``out/adapter``.

    Args:
        only: run this stage alone, on top of those that are complete. Stages that train different parts and do not need
            each other, such as the two pretrainings, can so run side by side in two processes; ``out/model`` is not
            written.
        report: called with every logged record.
        say: called with a sentence for each stage: what learns in it, and what is frozen.

    Raises: RecipeError if there is no such stage.
    """
    names = [stage.name for stage in recipe.stage]
    if only is not None and only not in names:
        raise RecipeError(f"recipe {recipe.name} has no stage {only!r}: choose from {', '.join(names)}")
    device = chosen(recipe.device)
    trainee = begin(recipe, out).to(device)
    for number, stage in enumerate(recipe.stage, start=1):
        folder = out / f"{number}-{stage.name}"
        if finished(folder, trainee, steps=stage.steps) or only not in (None, stage.name):
            continue
        check_parts(stage)
        check_budget(stage, longest(trainee.model.config) if trainee.model.config else None)
        groups = param_groups(trainee, stage.rates, stage.muon)  # pyright: ignore[reportArgumentType]
        say(f"{stage.name}: {learning_parts(trainee)}")
        train(
            task_of(stage, trainee, seed=recipe.seed * 1000 + number),
            trainee,
            groups=groups,
            steps=stage.steps,
            folder=folder,
            spread=spread_of(recipe, stage, trainee),
            clip=stage.clip,
            floor=stage.floor,
            ema=recipe.ema,
            precision=recipe.precision,
            save_every=recipe.save_every,
            log_every=recipe.log_every,
            stage=stage.name,
            seed=recipe.seed * 1000 + number,
            meter=Meter(
                {"llm": trainee.model.llm, "vision": trainee.part("vision")}, tile=trainee.tile_patches, device=device
            ),
            report=report,
        )
        if recipe.parallel == "fsdp":  # each process holds a share only: read the whole back
            trainee = begin(recipe, out).to(device)
            for done, other in enumerate(recipe.stage, start=1):
                finished(out / f"{done}-{other.name}", trainee, steps=other.steps)
        if distributed.rank() == 0 and only is None:
            save(recipe, trainee, out)
    return trainee


def check_parts(stage: Stage) -> None:
    """Refuse a stage that leaves a process without a sample. Raises: RecipeError."""
    parts = distributed.world() * stage.accumulate
    if stage.samples < parts:
        raise RecipeError(
            f"stage {stage.name!r}: {stage.samples} samples a step cannot be shared by {distributed.world()} processes "
            f"x {stage.accumulate} parts: raise samples to {parts}, or lower accumulate"
        )


def spread_of(recipe: Recipe, stage: Stage, trainee: Trainee) -> Spread:
    """How the steps of a stage are spread: both towers' blocks recompute, the language model's are sharded apart."""
    layers = tuple(trainee.model.llm.layers)
    return Spread(
        parallel=recipe.parallel,
        accumulate=stage.accumulate,
        recompute=stage.recompute,
        compiled=recipe.compiled,
        blocks=(*layers, *trainee.vision_blocks),
        shards=layers,
    )


def begin(recipe: Recipe, out: Path) -> Trainee:
    """The model as the first stage finds it: new, or a checkpoint, prepared for ``[tune]``, in its formats."""
    if recipe.init is None:
        trainee = new_trainee(recipe.config(rows=1), tokenizer(recipe, out), seed=recipe.seed)
        return in_formats(trainee, recipe)
    torch.manual_seed(recipe.seed)
    trainee = Trainee(NVILA.from_pretrained(recipe.init, dtype=torch.float32))
    if recipe.tune is not None:
        tune(trainee.model, **recipe.tune.model_dump())
    return in_formats(trainee, recipe)


def in_formats(trainee: Trainee, recipe: Recipe) -> Trainee:
    """Give all weights the formats that a recipe asks for, in place; those in 4 bits stay."""
    learns = {id(parameter) for parameter in learnable(trainee)}
    for parameter in trainee.parameters():
        if parameter.dtype == torch.float32:
            kind = WEIGHTS[recipe.weights] if id(parameter) in learns else frozen_dtype(recipe)
            parameter.data = parameter.data.to(kind)
    return trainee


def frozen_dtype(recipe: Recipe) -> torch.dtype:
    """The format of weights that no stage of a tuned model trains: that of the products, since nothing is added up."""
    if recipe.tune is None or recipe.precision.name == "fp32":
        return WEIGHTS[recipe.weights]
    return torch.bfloat16


def save(recipe: Recipe, trainee: Trainee, out: Path) -> None:
    """Write what was learnt: the adapter of a tuned model, the whole checkpoint otherwise."""
    if is_tuned(trainee.model):
        save_adapter(trainee.model, out / "adapter", base=recipe.init)
    else:
        save_model(trainee, out / "model")


def tokenizer(recipe: Recipe, out: Path) -> Tokenizer:
    """The run's tokenizer, made if there is none yet."""
    folder = out / "tokenizer"
    assert recipe.llm is not None
    # all processes do what the first one finds: another might look while it writes
    if not distributed.agreed(folder.exists()):
        made = new_vocabulary(seed=recipe.seed, size=recipe.llm.vocabulary, context=recipe.llm.context)
        if distributed.rank() == 0:
            made.save(folder)
        return made
    return Tokenizer.from_folder(folder)


def task_of(stage: Stage, trainee: Trainee, *, seed: int) -> Task:
    """The task of a stage's objective."""
    if stage.data:
        data = ConversationDataset(stage.data, seed=seed)
        return ConversationTask(
            trainee=trainee,
            data=data,
            samples=stage.samples,
            budget=stage.budget,
            skip=stage.skip,
            workers=stage.workers,
        )
    return scene_task(
        stage.objective, trainee, seed=seed, mix=stage.mix, samples=stage.samples, questions=stage.questions,
        captions=stage.captions,
    )  # fmt: skip


def save_model(trainee: Trainee, folder: Path) -> None:
    """Write the checkpoint in float16."""
    weights = {name: value.clone() for name, value in trainee.state_dict().items()}
    before = trainee.model.llm.dtype
    trainee.model.to(torch.float16).save_pretrained(str(folder))
    trainee.model.to(before)
    trainee.load_state_dict(weights)
