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
from einops import rearrange
from nvila_tiling import Grid, merge_grid
from torch import Tensor, nn

from nvila_train.nano.drawing import DENSE_CLASSES
from nvila_train.nano.patch_labels import HALVES, LENGTHS, PLACES, PatchLabels
from nvila_train.trainee import Trainee

COARSE = 8
"""Rows and columns of places over the whole picture that an embedding tells apart."""

CLASSES = 2 + HALVES
"""Labels of a patch whose values are classes: its cover, its characters, its object."""


class WrittenScene(nn.Module):
    """Embeddings that say what patches show, in the place of visual tokens.

    As the compressor and the projector make a token of the features of ``fold x fold`` patches, so is it made here: a
    patch is the sum of its labels' words, each turned by a matrix of what is labelled, and a token the sum of its
    patches, each turned by a matrix of its place, and of the token's own places in the picture and the tile. The words
    are shared: what is learnt of a letter in one place holds in all, and ``red circle`` is ``red`` and ``circle``.

    Args:
        width: of the language model.
        side: patches along a side of a tile.
        fold: patches along a side of a token, as the compressor folds them.

    Shapes: ``index`` makes int64 ``[tiles, t, k]`` of labels, ``forward`` makes ``[..., width]`` of ``[..., k]``.
    """

    word_of: Tensor

    def __init__(self, width: int, *, side: int, fold: int = 2) -> None:
        super().__init__()
        self.side, self.fold = side, fold
        sizes = [len(DENSE_CLASSES)] * CLASSES + [LENGTHS, LENGTHS, PLACES]
        starts = torch.tensor([0, *sizes]).cumsum(0)
        self.blank = int(starts[-1])
        words, rows = _words(sizes)
        self.starts = starts[:-1]  # no buffer: an index is made where labels are, on the CPU
        self.register_buffer("word_of", words, persistent=False)
        self.words = nn.Embedding(rows, width, padding_idx=0)
        self.labels = nn.Linear(len(sizes) * width, width, bias=False)
        self.patches = nn.Linear(fold * fold * width, width, bias=False)
        self.coarse = nn.Embedding(COARSE * COARSE, width)
        self.fine = nn.Embedding((side // fold) ** 2, width)
        self.whole = nn.Embedding(2, width)
        for embedding in (self.words, self.coarse, self.fine, self.whole):
            nn.init.normal_(embedding.weight, std=0.5)
        nn.init.zeros_(self.words.weight[0])
        nn.init.normal_(self.labels.weight, std=width**-0.5)
        nn.init.normal_(self.patches.weight, std=0.3 * width**-0.5)

    def index(self, labels: PatchLabels, grid: Grid, *, whole: bool) -> Tensor:
        """The labels of each token and its three places: int64 ``[tiles, t, k]``, ``blank`` where a label says nothing.

        Args:
            labels: of the tiles of one grid.
            whole: the grid is a single tile that shows the whole picture at every scale (a frame of a clip).
        """
        parts = (labels.cover[..., None], labels.characters, labels.objects[..., None], labels.sizes)
        flat = torch.cat(parts, dim=-1)
        said = flat >= 0
        said[..., :CLASSES] &= flat[..., :CLASSES] > 0
        flat = torch.where(said, flat + self.starts, self.blank)
        across = self.side // self.fold
        sizes = {"h": across, "f1": self.fold, "f2": self.fold}
        rows = rearrange(flat, "n (h f1 w f2) k -> n (h w) (f1 f2 k)", **sizes)
        places = self._places(grid, across, whole=whole)
        return torch.cat((rows, places.expand(len(rows), -1, -1)), dim=-1)

    def _places(self, grid: Grid, across: int, *, whole: bool) -> Tensor:
        """Rows for where each token lies: ``[tiles, tokens a tile, 3]``."""
        high, wide = grid.rows * across, grid.cols * across
        down = (torch.arange(high) + 0.5) / high * COARSE
        right = (torch.arange(wide) + 0.5) / wide * COARSE
        coarse = down.long()[:, None] * COARSE + right.long()
        tiled = rearrange(coarse, "(r h) (c w) -> (r c) (h w)", r=grid.rows, c=grid.cols)
        fine = torch.arange(across**2).expand_as(tiled)
        return torch.stack((tiled, fine, torch.full_like(tiled, int(whole))), dim=-1)

    def forward(self, index: Tensor) -> Tensor:
        """The tokens that an index says. Shapes: int64 ``[..., k]`` -> ``[..., width]``."""
        labels, (coarse, fine, whole) = index[..., :-3], index[..., -3:].unbind(-1)
        said = self.words(self.word_of[labels]).sum(-2)
        patches = self.labels(rearrange(said, "... (p k) d -> ... p (k d)", p=self.fold**2))
        tokens = self.patches(patches.flatten(-2))
        return tokens + 0.3 * (self.coarse(coarse) + self.fine(fine) + self.whole(whole))

    def read_in_order(self, tokens: Tensor, grid: Grid) -> Tensor:
        """Put the tiles' tokens together and read row by row: ``[tiles, t, d] -> [tiles * t, d]``."""
        across = self.side // self.fold
        return merge_grid(tokens.unflatten(1, (across, across)), grid).flatten(0, 1)


def scene_embedding(trainee: Trainee) -> WrittenScene:
    """The embeddings of written-out scenes that are trained beside a model. Raises: ValueError if there are none."""
    found = trainee.part("written")
    if not isinstance(found, WrittenScene):
        raise ValueError("the model has no embeddings of written-out scenes: begin with random weights, not with init")
    return found


def forget(index: Tensor, blank: int, share: float, rng: Random) -> Tensor:
    """Blank a random share of the labels, as an eye that misses some of them."""
    if share <= 0:
        return index
    generator = torch.Generator().manual_seed(rng.getrandbits(40))
    keep = torch.rand(index.shape, generator=generator) >= share
    keep[..., -3:] = True
    return torch.where(keep, index, blank)


def _words(sizes: Sequence[int]) -> tuple[Tensor, int]:
    """For every label the rows of its two words, int64 ``[labels + 1, 2]``, and how many rows there are.

    Row 0 belongs to no word, and to the blank label at the end.
    """
    rows: dict[str, int] = {"": 0}
    pairs: list[list[int]] = []
    for kind, size in enumerate(sizes):
        for value in range(size):
            name = DENSE_CLASSES[value] if kind < CLASSES else f"{kind}/{value}"
            words = name.split(" ") if len(name) > 1 else [name]
            pairs.append([rows.setdefault(word, len(rows)) for word in (*words, "")[:2]])
    return torch.tensor([*pairs, [0, 0]]), len(rows)
