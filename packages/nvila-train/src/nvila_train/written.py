"""The scene written out, patch by patch, in place of the picture.

A published NVILA starts from a language model that has read the web. Ours learns to answer before it can see: in
place of the visual tokens it reads one embedding for each, made of what the patches under it show. Order, density and
places are those of the visual tokens, so that nothing has to be learnt again once the vision tower takes over; only
the projector has to find the same embeddings.

Written out as ordinary text the same scenes taught questions just as well, but how to find a row and a column had to be
learnt a second time on visual tokens.
"""

from collections.abc import Sequence
from random import Random

import torch
import torch.nn.functional as F
from einops import rearrange
from nvila_tiling import Grid, TilePlan, merge_grid
from torch import Tensor, nn

from nvila_train.playground import DENSE_CLASSES
from nvila_train.targets import HALVES, LENGTHS, PLACES, PatchLabels

COARSE = 8
"""Rows and columns of places over the whole picture that an embedding tells apart."""


class WrittenScene(nn.Module):
    """Embeddings that say what patches show, in the place of visual tokens.

    Each token is the sum of one row for every label of its ``fold x fold`` patches (a label at another patch of the
    token is another row), of its coarse place in the picture and of its place in the tile.

    Args:
        width: of the language model.
        side: patches along a side of a tile.
        fold: patches along a side of a token, as the compressor folds them.

    Shapes: the labels of ``n`` tiles, with the index lists of ``rows`` -> ``[n * (side / fold)^2, width]``.
    """

    def __init__(self, width: int, *, side: int, fold: int = 2) -> None:
        super().__init__()
        self.side, self.fold = side, fold
        kinds = [len(DENSE_CLASSES)] * (2 + HALVES) + [LENGTHS, LENGTHS, PLACES]
        starts = torch.tensor([0, *kinds]).cumsum(0)
        self.per_patch = int(starts[-1])
        self.register_buffer("starts", starts[:-1], persistent=False)
        places = COARSE * COARSE + (side // fold) ** 2 + 1
        self.rows = nn.Embedding(self.per_patch * fold * fold + places + 1, width)
        nn.init.normal_(self.rows.weight, std=0.02)
        self.blank = self.rows.num_embeddings - 1

    def index(self, labels: PatchLabels, grid: Grid, *, whole: bool) -> Tensor:
        """Which rows make up each token: int64 ``[tokens, k]``, ``blank`` where a label says nothing.

        Args:
            labels: of the tiles of one grid.
            whole: the grid is a single tile that shows the whole picture at every scale (a frame of a clip).
        """
        parts = (labels.cover[..., None], labels.characters, labels.objects[..., None], labels.sizes)
        flat = torch.cat(parts, dim=-1)
        said = flat >= 0
        said[..., : 2 + HALVES] &= flat[..., : 2 + HALVES] > 0
        across = self.side // self.fold
        flat = flat + self.starts
        pattern = "n (h f1 w f2) k -> n (h w) (f1 f2) k"
        sizes = {"h": across, "f1": self.fold, "f2": self.fold}
        flat, said = rearrange(flat, pattern, **sizes), rearrange(said, pattern, **sizes)
        flat = flat + torch.arange(self.fold**2)[:, None] * self.per_patch
        flat = torch.where(said, flat, self.blank)
        rows = rearrange(flat, "n t p k -> n t (p k)")
        places = self._places(grid, across, whole=whole)
        return torch.cat((rows, places.expand(len(rows), -1, -1)), dim=-1)

    def _places(self, grid: Grid, across: int, *, whole: bool) -> Tensor:
        """Rows for where each token lies: ``[tiles, tokens a tile, 3]``."""
        start = self.per_patch * self.fold**2
        high, wide = grid.rows * across, grid.cols * across
        down = (torch.arange(high) + 0.5) / high * COARSE
        right = (torch.arange(wide) + 0.5) / wide * COARSE
        coarse = down.long()[:, None] * COARSE + right.long()
        tiled = rearrange(coarse, "(r h) (c w) -> (r c) (h w)", r=grid.rows, c=grid.cols) + start
        fine = torch.arange(across**2).expand_as(tiled) + start + COARSE**2
        last = torch.full_like(tiled, self.blank - 1 if whole else self.blank)
        return torch.stack((tiled, fine, last), dim=-1)

    def forward(self, index: Tensor) -> Tensor:
        """Sum the rows. Shapes: int64 ``[..., k]`` -> ``[..., width]``."""
        flat = F.embedding_bag(index.flatten(0, -2), self.rows.weight, mode="sum", padding_idx=self.blank)
        return flat.unflatten(0, index.shape[:-1])

    def read_in_order(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Put the tiles' tokens together and read row by row: ``[tiles, t, d] -> [tiles * t, d]``."""
        across = self.side // self.fold
        return merge_grid(tokens.unflatten(1, (across, across)), grid).flatten(0, 1)


def largest(labels: PatchLabels, plan: TilePlan) -> PatchLabels:
    """The labels of the scale that the merged map has."""
    count = plan.grids[-1].count
    return PatchLabels(
        cover=labels.cover[-count:],
        characters=labels.characters[-count:],
        objects=labels.objects[-count:],
        sizes=labels.sizes[-count:],
    )


def forget(index: Tensor, blank: int, share: float, rng: Random) -> Tensor:
    """Blank a random share of the labels, as an eye that misses some of them."""
    if share <= 0:
        return index
    generator = torch.Generator().manual_seed(rng.getrandbits(40))
    keep = torch.rand(index.shape, generator=generator) >= share
    keep[..., -3:] = True
    return torch.where(keep, index, blank)


def parts(tokens: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Cut a stack of tokens into pictures."""
    return list(tokens.split(list(counts)))
