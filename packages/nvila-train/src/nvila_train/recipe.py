"""Recipes: TOML files that say what is trained, on what, how long and how fast.

Everything is validated before anything runs; an unknown field is an error, not a default.
"""

import json
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from nvila_model import NVILAConfig, list_models, preset
from pydantic import (
    BeforeValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from nvila_train.data.conversations import check_together
from nvila_train.data.source import DataSource
from nvila_train.model_size import LanguageSize, ModelSize, Strict, VisionSize, described
from nvila_train.nano_recipes import KINDS
from nvila_train.recipe_errors import RecipeError, brief, nearest, sentence
from nvila_train.trainer.blocks import Recompute
from nvila_train.trainer.device import DeviceName
from nvila_train.trainer.parallel import Parallel
from nvila_train.trainer.precision import Precision, WeightsName
from nvila_train.tuning import LanguageTuning, ProjectorTuning, VisionTuning

Part = Literal["vision", "compressor", "projector", "llm", "patches", "written"]
Objective = Literal["patches", "written", "alignment", "answers", "questions"]
Rate = Annotated[PositiveFloat, Field(allow_inf_nan=False)]


def precision_of(value: Any) -> Any:
    """A precision by its name alone, or from its table."""
    try:
        return TypeAdapter(Precision).validate_python({"name": value} if isinstance(value, str) else value)
    except ValidationError as error:
        raise ValueError(sentence(error, Precision)) from None


class Tune(Strict):
    """``[tune]``: what learns of the model that the recipe begins with; see ``nvila_train.tuning``.

    Attributes:
        vision, llm, projector: the way each learns.
        rank, alpha, dropout: of the adapters; ``alpha`` is twice the rank by default.
    """

    vision: VisionTuning = "layernorm"
    llm: LanguageTuning = "lora"
    projector: ProjectorTuning = "full"
    rank: PositiveInt = 16
    alpha: PositiveFloat | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Stage(Strict):
    """One ``[[stage]]``.

    Attributes:
        name: of the stage's folder and in the log.
        objective: what is learnt; see ``nvila_train.nano_recipes``.
        rates: peak learning rate of each part that is trained; all others are frozen.
        muon: peak learning rate of a part's matrices, where Muon trains them; AdamW otherwise.
        steps: optimizer steps.
        samples: scenes a step, over all processes.
        mix: how often each kind of drawn scene comes, as weights.
        data: conversations to train on instead of drawn scenes (``answers`` only); paths begin at the recipe's folder.
        budget: tokens of a packed row of ``data``; the context otherwise.
        skip: samples of ``data`` that may be left out because they cannot be used, over all processes.
        workers: processes that prepare steps of ``data`` ahead.
        questions: questions about a scene in one conversation, at most.
        captions: how often a conversation asks for the whole scene.
        floor: share of the learning rate that is left at the end.
        clip: largest norm of the gradient.
        accumulate: parts of a batch that a process runs one after the other, for less memory.
        recompute: what blocks compute again in the backward pass, for less memory: ``none``, ``selective``, ``block``.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")]
    objective: Objective
    rates: dict[Part, Rate]
    muon: dict[Part, Rate] = Field(default_factory=dict)
    steps: PositiveInt
    samples: PositiveInt
    mix: dict[str, Rate] = Field(default_factory=dict)
    data: tuple[DataSource, ...] = ()
    budget: PositiveInt | None = None
    skip: Annotated[int, Field(ge=0)] = 10
    workers: Annotated[int, Field(ge=0)] = 0
    questions: Annotated[int, Field(ge=0)] = 4
    captions: Annotated[float, Field(ge=0, le=1)] = 0.0
    floor: Annotated[float, Field(ge=0, le=1)] = 0.0
    clip: PositiveFloat = 1.0
    accumulate: PositiveInt = 1
    recompute: Recompute = "none"

    @field_validator("rates")
    @classmethod
    def trains_something(cls, value: dict[str, float]) -> dict[str, float]:
        if not value:
            raise ValueError("no part is trained: give at least one part a learning rate")
        return value

    @field_validator("mix")
    @classmethod
    def known_kinds(cls, value: dict[str, float]) -> dict[str, float]:
        for name in value:
            if name not in KINDS:
                raise ValueError(f"there is no kind {brief(name)}, {nearest(name, KINDS)}")
        if not value:
            raise ValueError(f"mix is empty: choose from {', '.join(KINDS)}")
        return value

    @field_validator("data")
    @classmethod
    def placed(cls, value: tuple[DataSource, ...], info: ValidationInfo) -> tuple[DataSource, ...]:
        check_together(value)
        folder = (info.context or {}).get("folder")
        return value if folder is None else tuple(source.under(folder) for source in value)

    @model_validator(mode="after")
    def drawn_or_given(self) -> "Stage":
        if bool(self.mix) == bool(self.data):
            raise ValueError("give the stage either mix, to draw scenes, or data, to read conversations")
        if self.data and self.objective != "answers":
            raise ValueError(f"data trains 'answers', not {self.objective!r}, which needs drawn scenes: give mix")
        set_apart = ("questions", "captions") if self.data else ("budget", "skip", "workers")
        stray = sorted(self.model_fields_set & set(set_apart))
        if stray:
            raise ValueError(f"{stray[0]} says nothing about {'data' if self.data else 'drawn scenes'}: leave it out")
        return self


def longest(config: NVILAConfig) -> int:
    """Positions that a language model was made for, whatever its checkpoint says of prompts."""
    return max(config.llm.context_length, config.llm.max_position_embeddings)


def check_budget(stage: Stage, context: int | None) -> None:
    """Refuse rows that are longer than the model reads. Raises: RecipeError."""
    if context is not None and stage.budget is not None and stage.budget > context:
        raise RecipeError(
            f"stage {stage.name!r}: budget {stage.budget} > the context of {context} tokens: lower it, or leave it out"
        )


class Recipe(Strict):
    """A whole recipe.

    Attributes:
        seed: of the weights and of every stream of scenes.
        precision: of the matrix products, a name or a table of ``Precision``.
        weights: format of the weights that learn, their gradients and optimizer states: ``fp32``, or ``bf16`` rounded
            at random, for half the memory; see ``nvila_train.trainer.rounded``.
        init: the model to begin with, ``"nano"``, a folder or a hub repository; it takes the place of ``[model]``,
            ``[vision]`` and ``[llm]``, which describe one with random weights.
        preset: the published model whose sizes ``init`` has, for ``--dry-run``.
        tune: which of its weights learn; all of a part that has a rate otherwise.
        device: where it computes, ``auto``, ``cpu`` or ``cuda``; see ``nvila_train.trainer.device``.
        parallel: what each of several processes holds: ``none`` and ``ddp`` all, ``fsdp`` its share.
        compiled: blocks go through ``torch.compile``.
        ema: decay of an average of the weights that a stage ends with; by default it ends with the last ones.
        save_every, log_every: steps between states, and between lines of the log.
        stage: the stages in order; each begins with the weights that the one before it left.
    """

    name: str
    seed: int
    precision: Annotated[Precision, BeforeValidator(precision_of)] = Precision("fp32")
    weights: WeightsName = "fp32"
    init: str | None = None
    preset: str | None = None
    tune: Tune | None = None
    model: ModelSize | None = None
    vision: VisionSize | None = None
    llm: LanguageSize | None = None
    device: DeviceName = "auto"
    parallel: Parallel = "none"
    compiled: bool = False
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    save_every: PositiveInt = 100
    log_every: PositiveInt = 10
    stage: Annotated[tuple[Stage, ...], Field(min_length=1)]

    @field_validator("stage")
    @classmethod
    def names_differ(cls, value: tuple[Stage, ...]) -> tuple[Stage, ...]:
        names = [stage.name for stage in value]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"stage {twice[0]!r} is there twice: give every stage its own name")
        return value

    @field_validator("preset")
    @classmethod
    def published(cls, value: str | None) -> str | None:
        if value is not None and value not in list_models():
            raise ValueError(f"no preset {value!r}: choose from {', '.join(list_models())}")
        return value

    @model_validator(mode="after")
    def cut_without_muon(self) -> "Recipe":
        stage = next((stage for stage in self.stage if stage.muon), None)
        if self.parallel == "fsdp" and stage is not None:
            raise ValueError(
                f"stage {stage.name!r}: Muon needs whole matrices, fsdp cuts them: leave muon out, or use ddp"
            )
        return self

    @model_validator(mode="after")
    def small_weights(self) -> "Recipe":
        if self.weights == "fp32":
            return self
        if self.precision.name == "fp32":
            raise ValueError(
                "weights 'bf16' are not multiplied in fp32: use precision 'bf16' or 'fp8', or weights 'fp32'"
            )
        stage = next((stage for stage in self.stage if stage.muon), None)
        if stage is not None:
            raise ValueError(
                f"stage {stage.name!r}: Muon would lose small steps of weights 'bf16': leave muon out, or use 'fp32'"
            )
        return self

    @model_validator(mode="after")
    def within_context(self) -> "Recipe":
        context = self.llm.context if self.llm is not None else None
        if self.preset is not None:
            context = longest(preset(self.preset))
        for stage in self.stage:
            check_budget(stage, context)
        return self

    @model_validator(mode="after")
    def begun_or_new(self) -> "Recipe":
        sizes = {"model": self.model, "vision": self.vision, "llm": self.llm}
        given = [name for name, size in sizes.items() if size is not None]
        if self.init is None:
            missing = sorted(sizes.keys() - given)
            if missing:
                raise ValueError(
                    f"table {missing[0]} is missing: describe the model, or name one to begin with in init"
                )
            for name in ("tune", "preset"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} needs a model that has learnt: name it in init")
            return self
        if given:
            raise ValueError(f"init brings its own sizes: leave {given[0]} out")
        wrong = [stage for stage in self.stage if stage.objective not in ("answers", "questions")]
        if wrong:
            raise ValueError(f"stage {wrong[0].name!r}: a model from init learns answers, not {wrong[0].objective}")
        return self

    @classmethod
    def read(cls, path: str | Path, *, device: str | None = None, weights: str | None = None) -> "Recipe":
        """Read a TOML file; ``device`` and ``weights`` go before those in it. Raises: RecipeError."""
        try:
            table = tomllib.loads(Path(path).read_text(encoding="utf-8"))
            over = {"device": device, "weights": weights}
            table |= {name: value for name, value in over.items() if value is not None}
            # As JSON, which has the same values: text is then no number, and a list may become a tuple.
            given = json.dumps(table, default=str)
            return cls.model_validate_json(given, strict=True, context={"folder": Path(path).parent})
        except OSError as error:
            raise RecipeError(f"cannot read {path}: {error.strerror}") from None
        except ValidationError as error:
            raise RecipeError(f"{path}: {sentence(error, cls)}") from None
        except (ValueError, RecursionError) as error:  # tomllib's own, and bytes that are no text
            raise RecipeError(f"{path} is not TOML: {error}") from None

    def config(self, *, rows: int) -> NVILAConfig:
        """The description of a model with random weights, for a tokenizer of ``rows`` ids. Raises: RecipeError."""
        llm, vision, model = self.llm, self.vision, self.model
        if llm is None or vision is None or model is None:
            raise RecipeError(f"recipe {self.name} begins with {self.init}, whose description is its own")
        return described(model, vision, llm, rows=rows)


def recipe_path(name: str) -> Path:
    """The file of a recipe: a path, or the name of a shipped one. Raises: RecipeError."""
    shipped = Path(str(files("nvila_train"))) / "recipes" / f"{name}.toml"
    if Path(name).is_file():
        return Path(name)
    if shipped.is_file():
        return shipped
    names = sorted(path.stem for path in shipped.parent.glob("*.toml"))
    raise RecipeError(f"no recipe {name!r}: give a TOML file, or {nearest(name, names)}")
