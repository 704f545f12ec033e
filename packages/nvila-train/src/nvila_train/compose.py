"""What the five stages begin with: a language model and a vision tower that others trained, and a new projector.

The two parts come as they are published, in Hugging Face's layout (or, for the tower, by a name of open-clip), and
leave as one checkpoint in upstream's layout, which ``init`` of a recipe names. The vocabulary grows by the media
tokens; positions of a tower that was trained on another size of image are resampled, as upstream does; the
projector's weights are random.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from einops import rearrange
from nvila_model import NVILA, NVILAConfig
from nvila_model.checkpoint import (
    CheckpointError,
    TensorFolder,
    fill_parameters,
    locate,
    read_json,
    stored_dtype,
    to_published,
)
from nvila_model.inputs import Tokenizer
from nvila_model.network import VisionTower, build_projector, meta_device
from torch import Tensor

OPEN_CLIP: Final = "open-clip:"
"""Before a tower's name in open-clip: ``open-clip:ViT-SO400M-14-SigLIP-384:webli``."""

TOWER: Final = "vision_model."
POSITIONS: Final = "vision_tower.vision_model.embeddings.position_embedding.weight"

SIZES: Final = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
OWN: Final = ("max_position_embeddings", "rms_norm_eps", "rope_theta", "tie_word_embeddings")
"""What a language model says of itself, whatever the preset has."""


class Parts(Mapping[str, Tensor]):
    """The tensors of all parts under the names of upstream's layout.

    Args:
        llm, vision: under their published names, without the part in front.
        projector: with ``mm_projector.`` in front.
        side: patches along a side of a tile.
    """

    def __init__(
        self, llm: TensorFolder, vision: Mapping[str, Tensor], projector: Mapping[str, Tensor], *, side: int
    ) -> None:
        self.llm, self.vision, self.projector, self.side = llm, vision, projector, side
        # newer files of a tower alone leave the name of the module around it out
        self.left_out = "" if any(name.startswith(TOWER) for name in vision) else TOWER

    def __getitem__(self, name: str) -> Tensor:
        part, _, rest = name.partition(".")
        if part == "mm_projector":
            return self.projector[name]
        found = self.llm[rest] if part == "llm" else self.vision[rest.removeprefix(self.left_out)]
        return resampled(found, self.side) if name == POSITIONS else found

    def __iter__(self) -> Iterator[str]:
        yield from (f"llm.{name}" for name in self.llm)
        names = (f"{self.left_out}{name}" for name in self.vision)
        yield from (f"vision_tower.{name}" for name in names if name.startswith(TOWER))
        yield from self.projector

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self[name].shape)

    def place(self, name: str) -> Path:
        part, _, rest = name.partition(".")
        source = self.llm if part == "llm" else self.vision
        return source.place(rest.removeprefix(self.left_out)) if isinstance(source, TensorFolder) else Path(part)


def begin_with(config: NVILAConfig, *, llm: str, vision: str, seed: int = 0) -> NVILA:
    """Put a language model and a vision tower together.

    Args:
        config: of the whole; how parts are put together is taken from it.
        llm: a folder or a hub repository of a Qwen2.
        vision: a folder or a hub repository of a SigLIP, or ``open-clip:NAME:WEIGHTS``.
        seed: of the projector's weights.

    Raises: CheckpointError for a part that is not whole, or has another size than ``config`` says.
    """
    folder = locate(llm)
    own = read_json(folder / "config.json")
    compare(own, config.llm.to_dict(), part=str(folder), names=(*SIZES, "num_key_value_heads"))
    given = {name: own[name] for name in OWN if name in own}
    config = config.model_copy(update={"llm": config.llm.model_copy(update=given)})
    tokenizer = Tokenizer.from_folder(folder, chat_template=config.chat_template)
    with meta_device():
        model = NVILA.from_config(config, tokenizer)
    tower = model.vision
    assert isinstance(tower, VisionTower)
    parts = Parts(
        TensorFolder(folder), tower_tensors(vision, config), new_projector(config, seed=seed), side=tower.side
    )
    fill_parameters(model, parts, dtype=stored_dtype(config), device=torch.device("cpu"))
    return model.eval()


def compare(own: Mapping[str, Any], wanted: Mapping[str, Any], *, part: str, names: tuple[str, ...]) -> None:
    """Refuse a part of another size. Raises: CheckpointError."""
    for name in names:
        if name in own and own[name] != wanted[name]:
            raise CheckpointError(
                f"{part} has {name} {own[name]}, the model needs {wanted[name]}: give the part of its size"
            )


def tower_tensors(vision: str, config: NVILAConfig) -> Mapping[str, Tensor]:
    """A vision tower's tensors by published name, ``vision_model.`` in front."""
    if vision.startswith(OPEN_CLIP):
        name, _, weights = vision.removeprefix(OPEN_CLIP).partition(":")
        tower = VisionTower.from_open_clip(name, pretrained=weights or None, select_layer=-1)
        named = (to_published(f"vision.{name}", value.detach()) for name, value in tower.named_parameters())
        return {name.removeprefix("vision_tower."): value for part in named for name, value in part.items()}
    folder = locate(vision)
    own = read_json(folder / "config.json")
    own = own.get("vision_config", own)  # beside the text model that it was trained with
    compare(own, config.vision.to_dict(), part=str(folder), names=(*SIZES, "patch_size"))
    return TensorFolder(folder)


def new_projector(config: NVILAConfig, *, seed: int) -> dict[str, Tensor]:
    """Random weights by published name."""
    torch.manual_seed(seed)
    _, projector = build_projector(
        config.projector.mm_projector_type, channels=config.feature_channels, out=config.llm.hidden_size
    )
    return {f"mm_projector.{name}": value.detach() for name, value in projector.named_parameters()}


def resampled(positions: Tensor, side: int) -> Tensor:
    """Position embeddings for a tile of ``side x side`` patches, by bicubic interpolation. Shapes: ``[p, c]``."""
    before = round(len(positions) ** 0.5)
    if before == side:
        return positions
    square = rearrange(positions.float(), "(h w) c -> 1 c h w", h=before)
    square = F.interpolate(square, (side, side), mode="bicubic", align_corners=False)
    return rearrange(square, "1 c h w -> (h w) c").to(positions.dtype)
