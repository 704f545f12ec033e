"""The projector's first lesson: give the embeddings that the written-out scene has.

The language model was pretrained on scenes written out as embeddings in the places of visual tokens. Where the vision
tower's pretraining already knows what a patch shows, the projector only has to translate, and it is told every token's
embedding instead of one answer a picture. The language model is not run at all.
"""

from dataclasses import dataclass

import torch
from nvila_tiling import Grid, TilePlan
from torch import Tensor

from nvila_train.nano.pictures import Pictures, pictures
from nvila_train.nano.scene_stream import SceneStream
from nvila_train.nano.scene_text import scene_embedding
from nvila_train.trainee import Trainee


@dataclass(frozen=True, kw_only=True)
class Aligned:
    """The pictures of one scene, and the scene written out.

    Attributes:
        tiles: of all pictures, ``[n, 3, s, s]``.
        plans: how each picture was cut.
        index: rows of ``WrittenScene``, int64 ``[tiles, t, k]``, for the tiles of the largest scale.
        grid: of those tiles, the same for all pictures.
        clip: whether the pictures are frames.
    """

    tiles: Tensor
    plans: tuple[TilePlan, ...]
    index: Tensor
    grid: Grid
    clip: bool


@dataclass(frozen=True, kw_only=True)
class AlignmentTask:
    """Batches of pictures with their written-out embeddings.

    The loss is the squared distance over the spread of the embeddings (1 for a projector that knows nothing but their
    mean), and counts tokens.
    """

    trainee: Trainee
    stream: SceneStream
    samples: int

    def batch(self, step: int, rank: int, world: int) -> list[Aligned]:
        numbers = range(step * self.samples + rank, (step + 1) * self.samples, world)
        return [self.aligned(pictures(self.stream, number, self.trainee.tiler)[0]) for number in numbers]

    def aligned(self, shown: Pictures) -> Aligned:
        """The pictures of one scene as tensors."""
        labels = shown.labels(patch=self.trainee.patch, all_scales=False)
        return Aligned(
            tiles=torch.cat([tiled.tiles for tiled in shown.tiled()]),
            plans=tuple(shown.plans),
            index=scene_embedding(self.trainee).index(labels, shown.grid, whole=shown.clip),
            grid=shown.grid,
            clip=shown.clip,
        )

    def loss(self, batch: list[Aligned]) -> tuple[Tensor, int, dict[str, float]]:
        model = self.trainee.model
        tiles = torch.cat([shown.tiles for shown in batch])
        plans = [plan for shown in batch for plan in shown.plans]
        tokens = torch.cat([token for parts in model.media_tokens(tiles, plans) for token in parts]).float()
        with torch.no_grad():
            targets = torch.cat([self.written(shown) for shown in batch]).float()
            spread = targets.var(dim=0).mean()
        distance = (tokens - targets).square().mean(-1) / spread
        return distance.sum(), len(distance), {}

    def written(self, shown: Aligned) -> Tensor:
        """The embeddings of all tokens of the pictures, in the order of visual tokens."""
        written = scene_embedding(self.trainee)
        embeds = written(shown.index)
        return embeds.flatten(0, 1) if shown.clip else written.read_in_order(embeds, shown.grid)
