"""How the tokens of an image or a video are framed before the language model reads them.

Every image, tile or frame is followed by the embedding of its end tokens (``"\\n"`` in all published
checkpoints). A video may be pooled over time first, at one or several sizes; then each pooled frame has
start and end tokens, and each size is closed by a separator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from nvila_compress import SpatioTemporalPool
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Framing:
    """Token ids around each image or frame, and the pooling of a video.

    Attributes:
        start, end: ids before and after each image, tile or (pooled) frame.
        separator: ids after each pool size of a video.
        pool: the pooling of a video; None keeps every frame.
    """

    start: tuple[int, ...] = ()
    end: tuple[int, ...] = ()
    separator: tuple[int, ...] = ()
    pool: SpatioTemporalPool | None = None

    def frame(self, tokens: Tensor, embedding: torch.nn.Embedding) -> Tensor:
        """Put the start and end embeddings around each. Shapes: ``[n, t, d]`` -> ``[n, t + start + end, d]``."""
        return torch.cat((*around(self.start, tokens, embedding), tokens, *around(self.end, tokens, embedding)), dim=1)

    def video(self, frames: Tensor, grid: tuple[int, int], embedding: torch.nn.Embedding) -> Tensor:
        """All tokens of one video. Shapes: frames ``[frames, h*w, d]`` on ``grid`` -> ``[t, d]``."""
        if self.pool is None:
            return self.frame(frames, embedding).flatten(0, 1)
        parts: list[Tensor] = []
        for pooled in self.pool(frames, grid):
            parts.append(self.frame(pooled, embedding).flatten(0, 1))
            parts += [part[0] for part in around(self.separator, pooled[:1], embedding)]
        return torch.cat(parts)

    def image_tokens(self, tokens: int) -> int:
        """Positions taken by one image or tile of ``tokens`` tokens."""
        return tokens + len(self.start) + len(self.end)

    def video_tokens(self, frames: int, grid: tuple[int, int]) -> int:
        """Positions taken by a video of ``frames`` frames whose tokens lie on ``grid``."""
        if self.pool is None:
            return frames * self.image_tokens(grid[0] * grid[1])
        shapes = self.pool.out_shapes(frames, grid)
        return sum(t * self.image_tokens(h * w) + len(self.separator) for t, h, w in shapes)


def around(ids: Sequence[int], tokens: Tensor, embedding: torch.nn.Embedding) -> list[Tensor]:
    """The embeddings of ``ids`` beside each of ``n`` images: nothing, or one ``[n, len(ids), d]``."""
    if not ids:
        return []
    embedded = embedding(torch.tensor(ids, device=tokens.device))
    return [embedded.expand(len(tokens), -1, -1)]
