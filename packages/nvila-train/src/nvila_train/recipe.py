"""Recipes: TOML files that say what is trained, on what, how long and how fast.

Everything is validated before anything runs; an unknown field is an error, not a default.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Literal

from nvila_model.config import EncoderConfig, LLMConfig, NVILAConfig, ProjectorConfig, VisionConfig
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from nvila_train.data.conversations import check_together
from nvila_train.data.source import DataSource
from nvila_train.playground import KINDS
from nvila_train.precision import Precision

Part = Literal["vision", "projector", "llm", "patches", "written"]
Objective = Literal["patches", "written", "alignment", "answers"]


class RecipeError(ValueError):
    """A recipe that cannot be used; the message names the file, the field and what is wrong."""


class Strict(BaseModel):
    """A table of a recipe: no unknown fields, no changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class VisionSize(Strict):
    """``[vision]``: a SigLIP tower of which every layer is used."""

    tile: PositiveInt
    patch: PositiveInt
    width: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    mlp_width: PositiveInt


class LanguageSize(Strict):
    """``[llm]``: a Qwen2 with tied embeddings."""

    vocabulary: Annotated[int, Field(ge=256)]
    width: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    kv_heads: PositiveInt
    mlp_width: PositiveInt
    context: PositiveInt
    rope_theta: PositiveFloat = 10_000.0


class ModelSize(Strict):
    """``[model]``: how the parts are put together."""

    scales: tuple[PositiveInt, ...]
    max_tiles: PositiveInt
    projector: str
    frames: PositiveInt
    pool: tuple[PositiveInt, PositiveInt, PositiveInt]


class Stage(Strict):
    """One ``[[stage]]``.

    Attributes:
        name: of the stage's folder and in the log.
        objective: what is learnt; see ``nvila_train.objectives``.
        rates: peak learning rate of each part that is trained; all others are frozen.
        muon: peak learning rate of a part's matrices, where Muon trains them; AdamW otherwise.
        steps: optimizer steps.
        samples: scenes a step, over all processes.
        mix: how often each kind of drawn scene comes, as weights.
        data: conversations to train on instead of drawn scenes (``answers`` only); paths begin at the recipe's folder.
        budget: tokens of a packed row of ``data``; the context otherwise.
        skip: samples of ``data`` that a process may leave out because they cannot be used.
        workers: processes that prepare steps of ``data`` ahead.
        questions: questions about a scene in one conversation, at most.
        captions: how often a conversation asks for the whole scene.
        floor: share of the learning rate that is left at the end.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")]
    objective: Objective
    rates: dict[Part, PositiveFloat]
    muon: dict[Part, PositiveFloat] = Field(default_factory=dict)
    steps: PositiveInt
    samples: PositiveInt
    mix: dict[str, PositiveFloat] = Field(default_factory=dict)
    data: tuple[DataSource, ...] = ()
    budget: PositiveInt | None = None
    skip: Annotated[int, Field(ge=0)] = 10
    workers: Annotated[int, Field(ge=0)] = 0
    questions: Annotated[int, Field(ge=0)] = 4
    captions: Annotated[float, Field(ge=0, le=1)] = 0.0
    floor: Annotated[float, Field(ge=0, le=1)] = 0.0

    @field_validator("rates")
    @classmethod
    def trains_something(cls, value: dict[str, float]) -> dict[str, float]:
        if not value:
            raise ValueError("no part is trained: give at least one part a learning rate")
        return value

    @field_validator("mix")
    @classmethod
    def known_kinds(cls, value: dict[str, float]) -> dict[str, float]:
        unknown = sorted(set(value) - set(KINDS))
        if unknown or not value:
            raise ValueError(f"kinds {unknown or 'missing'}: choose from {', '.join(KINDS)}")
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


class Recipe(Strict):
    """A whole recipe.

    Attributes:
        seed: of the weights and of every stream of scenes.
        precision: of the matrix products; weights and gradients are float32.
        stage: the stages in order; each begins with the weights that the one before it left.
    """

    name: str
    seed: int
    precision: Precision = "fp32"
    model: ModelSize
    vision: VisionSize
    llm: LanguageSize
    stage: Annotated[tuple[Stage, ...], Field(min_length=1)]

    @field_validator("stage")
    @classmethod
    def names_differ(cls, value: tuple[Stage, ...]) -> tuple[Stage, ...]:
        names = [stage.name for stage in value]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"stage {twice[0]!r} is there twice: give every stage its own name")
        return value

    @classmethod
    def read(cls, path: str | Path) -> "Recipe":
        """Read a TOML file. Raises: RecipeError."""
        try:
            text = Path(path).read_text(encoding="utf-8")
            return cls.model_validate(tomllib.loads(text), context={"folder": Path(path).parent})
        except OSError as error:
            raise RecipeError(f"cannot read {path}: {error.strerror}") from None
        except tomllib.TOMLDecodeError as error:
            raise RecipeError(f"{path} is not TOML: {error}") from None
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise RecipeError(f"{path}: {place}: {first['msg']}") from None

    def config(self, *, rows: int) -> NVILAConfig:
        """The description of the model, for a tokenizer of ``rows`` ids."""
        llm, vision, model = self.llm, self.vision, self.model
        return NVILAConfig(
            architectures=["LlavaLlamaModel"],
            model_type="llava_llama",
            llm=LLMConfig(
                architectures=["Qwen2ForCausalLM"],
                model_type="qwen2",
                vocab_size=rows,
                hidden_size=llm.width,
                intermediate_size=llm.mlp_width,
                num_hidden_layers=llm.layers,
                num_attention_heads=llm.heads,
                num_key_value_heads=llm.kv_heads,
                max_position_embeddings=llm.context,
                model_max_length=llm.context,
                rms_norm_eps=1e-6,
                rope_theta=llm.rope_theta,
                tie_word_embeddings=True,
                hidden_act="silu",
            ),
            vision=VisionConfig(
                architectures=["SiglipVisionModel"],
                model_type="siglip_vision_model",
                hidden_size=vision.width,
                intermediate_size=vision.mlp_width,
                num_hidden_layers=vision.layers,
                num_attention_heads=vision.heads,
                image_size=vision.tile,
                patch_size=vision.patch,
                layer_norm_eps=1e-6,
                hidden_act="gelu_pytorch_tanh",
                num_channels=3,
                vision_use_head=False,
            ),
            projector=ProjectorConfig(
                architectures=["MultimodalProjector"],
                model_type="v2l_projector",
                mm_projector_type=model.projector,
            ),
            hidden_size=llm.width,
            mm_hidden_size=vision.width * len(model.scales),
            image_aspect_ratio="dynamic_s2",
            dynamic_s2=True,
            s2_scales=",".join(str(scale) for scale in model.scales),
            s2_max_split_size=model.scales[0],
            s2_resize_output_to_scale_idx=-1,
            min_tiles=1,
            max_tiles=model.max_tiles,
            num_video_frames=model.frames,
            video_encoder=EncoderConfig(_target_="llava.model.encoders.TSPVideoEncoder", pool_sizes=[model.pool]),
            mm_vision_select_layer=-1,
            mm_vision_select_feature="cls_patch",
            model_dtype="torch.float16",
        )
