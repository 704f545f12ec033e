"""Compression along time: averages over groups of frames.

Neighbouring frames say nearly the same. NVILA reads more of them and averages their tokens in groups
(section 2.1.2, Table 2: 256 frames pooled 8x score 64.0 with the tokens of 32 frames, which score 61.0).

When a length does not divide by its group, the last group is the mean of what is left: 10 frames in
groups of 4 make 3 frames, of 4, 4 and 2. No frame is dropped and none counts twice. (Upstream has two
behaviours here: one raises, the other repeats the last frame until the group is full. Where the length
divides, all three are the same.)
"""

import torch
from torch import Tensor

from nvila_compress.contract import Fold, GridError


class TemporalAverage(Fold):
    """Average the tokens of each group of neighbouring frames.

    ``(t g) n c -> t n c`` by mean; the last group averages the frames that are left. No parameters.

    Args:
        group: how many frames become one.

    Shapes: ``[frames, h*w, c]`` -> ``[ceil(frames/group), h*w, c]``, the frames of one video.
    Raises: GridError for other axes, if there is no frame, or a ``grid`` is given and the token count is not
        ``h * w``; ValueError if ``group`` is less than 1.
    Source: NVILA, section 2.1.2 and Table 2.
    """

    needs = frozenset({"previous_frame"})
    grid_free = True

    def __init__(self, group: int) -> None:
        super().__init__()
        if group < 1:
            raise ValueError(f"group {group} < 1: 1 keeps every frame, 8 keeps 1/8")
        self.group = group

    @property
    def ratio(self) -> float:
        return float(self.group)

    def out_frames(self, frames: int) -> int:
        """How many frames come out of ``frames``: ``ceil(frames / group)``."""
        return -(-frames // self.group)

    def out_grid(self, grid: tuple[int, int]) -> tuple[int, int]:
        return grid

    def fold(self, tokens: Tensor, grid: tuple[int, int], **context: Tensor) -> Tensor:
        if tokens.shape[0] < 1:
            raise GridError("0 frames have no average: pass the tokens of at least one frame")
        return mean_groups(tokens, self.group, 0)

    def extra_repr(self) -> str:
        return f"group={self.group}"


def mean_groups(x: Tensor, group: int, dim: int) -> Tensor:
    """Mean over groups of ``group`` neighbours along ``dim``; the last group holds what is left."""
    if group == 1:
        return x
    length = x.shape[dim]
    whole = length - length % group
    parts: list[Tensor] = []
    if whole:
        parts.append(torch.unflatten(x.narrow(dim, 0, whole), dim, (whole // group, group)).mean(dim + 1))
    if whole < length:
        parts.append(x.narrow(dim, whole, length - whole).mean(dim, keepdim=True))
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
