"""Nested budgets (Matryoshka multimodal models, M3): one model, any number of tokens.

A model trained with the tokens of one image pooled to many sizes, from all down to one, can be asked for any of them
when it runs: a simple picture with one token, a dense page with hundreds. Each coarser set is the mean of the finer,
so that the information is nested. In training the size is drawn anew for each batch; then it is set.
"""

import torch
from einops import rearrange
from torch import Tensor

from nvila_compress.contract import Fold
from nvila_compress.video.temporal_average import mean_groups


class NestedPool(Fold):
    """Average pooling whose level may be set at any time, and is drawn at random in training if so asked.

    Level 0 is the tokens as they are; level ``l`` the mean of each ``2 x 2`` of level ``l - 1``, at the right and
    bottom of what is left. No parameters.

    Args:
        level: how often the grid is halved; 0 to ``levels - 1``.
        levels: how many there are. Of 24 x 24 tokens six make 576, 144, 36, 9, 4 and 1; M3's five go from 9 to 1 in
            one step.

    ``draw(generator)`` sets the level for the next batch of a training run.

    Shapes: tokens ``[b, h*w, c]`` -> ``[b, h'*w', c]``, each side halved ``level`` times and rounded up.
    Raises: GridError for other axes or tokens that do not lie on the grid; ValueError for a level out of range.
    Source: Cai et al., Matryoshka Multimodal Models (arXiv 2405.17430), section 3.
    """

    def __init__(self, level: int = 1, *, levels: int = 6) -> None:
        super().__init__()
        if levels < 1:
            raise ValueError(f"levels {levels} < 1: 6 take 24 x 24 tokens down to one")
        self.levels = levels
        self.level = level

    @property
    def level(self) -> int:
        return self._level

    @level.setter
    def level(self, level: int) -> None:
        if not 0 <= level < self.levels:
            raise ValueError(f"level {level} is not one of 0 to {self.levels - 1}: 0 keeps every token, 1 keeps 1/4")
        self._level = level

    def draw(self, generator: torch.Generator | None = None) -> int:
        """Set a level drawn at random, for one batch of training, and return it."""
        self.level = int(torch.randint(self.levels, (1,), generator=generator))
        return self.level

    @property
    def ratio(self) -> float:
        return float(4**self.level)

    def out_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        return -(-grid[0] // 2**self.level), -(-grid[1] // 2**self.level)

    def fold(self, tokens: Tensor, grid: tuple[int, int], **context: Tensor) -> Tensor:
        map_ = rearrange(tokens, "b (h w) c -> b h w c", h=grid[0], w=grid[1])
        for _ in range(self.level):
            map_ = mean_groups(mean_groups(map_, 2, 1), 2, 2)
        return rearrange(map_, "b h w c -> b (h w) c")

    def extra_repr(self) -> str:
        return f"level={self.level}, levels={self.levels}"
