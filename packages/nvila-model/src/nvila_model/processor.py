"""From messages of text, images and videos to ``ModelInputs``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nvila_tiling import Tiler

from nvila_model.inputs import ModelInputs
from nvila_model.parity import Parity
from nvila_model.tokenizer import Tokenizer

Message = Mapping[str, Any]
Conversation = Sequence[Message]


@dataclass(frozen=True, kw_only=True)
class VideoSettings:
    """How videos are sampled and tiled.

    Attributes:
        num_frames: frames taken from a video, at most when ``fps`` is set.
        fps: frames a second to take from the start; 0 spreads ``num_frames`` over the whole video.
        tiler: how a frame is tiled; None takes one tile a frame.
    """

    num_frames: int = 8
    fps: float = 0.0
    tiler: Tiler | None = None


class Processor:
    """Text, images and videos of conversations to ids, tiles and their places.

    Args:
        tokenizer: the checkpoint's tokenizer.
        tiler: how an image is tiled.
        untiled: how an image is made one tile where it must not be tiled; None follows from ``tiler``.
        video: how videos are sampled and tiled.
        tile_text: what follows each media token of an image that ``tiler`` tiled ("\\n" for dynamic tiles).
        tile_budget: tiles that the images of one conversation share; see ``tiles_per_image``.
        parity: the reference's oddities to reproduce.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        tiler: Tiler,
        *,
        untiled: Tiler | None = None,
        video: VideoSettings | None = None,
        tile_text: str = "",
        tile_budget: int = 48,
        parity: Parity | None = None,
    ) -> None:
        raise NotImplementedError

    def __call__(
        self, messages: Conversation | Sequence[Conversation], *, add_generation_prompt: bool = True
    ) -> ModelInputs:
        """One conversation, or a list of them, to the inputs of one batch."""
        raise NotImplementedError

    def for_training(self, conversations: Sequence[Conversation]) -> ModelInputs:
        """Whole conversations with ``labels``: answers and their end-of-turn tokens, nothing else."""
        raise NotImplementedError
