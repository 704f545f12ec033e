"""A compressor after the projector: on tokens as the language model would read them.

Here every host is alike: one sequence of tokens of the language model's width for each image, cut into blocks
(``blocks.py``). A chooser belongs here, since it changes no weight. So does a fold where tiles are no fixed squares;
what it made wider is brought back by a linear layer that starts as the mean of the folded tokens.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from nvila_compress.adapters.blocks import (
    Block,
    applies,
    as_rows,
    body,
    compress_frames,
    in_own_dtype,
    in_time,
    like_rows,
)
from nvila_compress.adapters.linear import widen
from nvila_compress.contract import Choose, Compressor, GridError

NAME = "token_compressor"
"""What a host's model calls the module."""


class TokenCompression(nn.Module):
    """Compress the projected tokens of images and videos, and keep what stands between them.

    Args:
        compressor: any ``Compressor`` that is an ``nn.Module``.
        width: of the language model's tokens.
        levels: further sets of tokens for the same places that follow the first (Qwen3-VL's deepstack).

    Shapes: ``forward``: ``[b, n, width]`` -> ``[b, n', width]`` of equal tiles; ``sequence``: one image's
        ``[n, width]`` -> ``[n', width]``.
    """

    def __init__(self, compressor: Compressor, *, width: int, levels: int = 0) -> None:
        super().__init__()
        self.compressor = cast(nn.Module, compressor)
        wide = compressor.out_channels(width)
        count = 0 if wide == width else 1 + levels
        self.linears = nn.ModuleList(mean_of_folded(width, wide) for _ in range(count))

    def narrow(self, tokens: Tensor, level: int = 0) -> Tensor:
        """Folded tokens, brought back to the language model's width."""
        return self.linears[level](tokens) if len(self.linears) else tokens

    def forward(self, tokens: Tensor, grid: tuple[int, int], **context: Tensor) -> Tensor:
        """Equal tiles, each compressed alone; class tokens in front of the grid pass."""
        rows, lead, grid = as_rows(tokens, grid)
        out = self.narrow(in_own_dtype(self.compressor, rows[:, lead:], grid, **context))
        if lead:
            out = torch.cat([rows[:, :lead], out], dim=1)
        return like_rows(out, tokens)

    def sequence(self, tokens: Tensor, blocks: Sequence[Block], **context: Tensor) -> Tensor:
        """One image's tokens ``[n, width]``, laid out as ``blocks``; what is known of each, ``[n]``, in ``context``."""
        out: list[Tensor] = []
        start = 0
        for block in blocks:
            part = slice(start, start + block.length)
            known = {key: body(value[part, None], block)[:, :, 0] for key, value in context.items()}
            out.append(self.block(tokens[part], block, known)[0])
            start += block.length
        if start != len(tokens):
            raise GridError(f"{len(tokens)} tokens where {start} were expected: the processor and the model differ")
        return torch.cat(out)

    def block(
        self, tokens: Tensor, block: Block, context: Mapping[str, Tensor] | None = None, level: int = 0
    ) -> tuple[Tensor, Tensor]:
        """One block's tokens, and the places of those on the grid in ``frames * rows * columns``."""
        frames = body(tokens, block)
        if not applies(cast(Any, self.compressor), block):
            return tokens, torch.arange(frames.shape[:2].numel(), device=tokens.device)
        out, places = compress_frames(self.compressor, frames, block.grid, **(context or {}))
        out = self.narrow(out, level)
        if block.newline:
            newline = tokens[block.lead + block.grid[1]]
            rows = cast(Any, self.compressor).out_grid(block.grid)[0]
            out = rearrange(out, "(r c) d -> r c d", r=rows)
            out = torch.cat([out, newline.expand(rows, 1, -1)], dim=1).flatten(0, 1)
        return torch.cat([tokens[: block.lead], out, tokens[len(tokens) - block.tail :]]), places

    def level(self, tokens: Tensor, block: Block, places: Tensor, level: int) -> Tensor:
        """Further tokens for the places that ``block`` kept: a chooser takes the same, a fold folds them too."""
        if isinstance(self.compressor, Choose):
            return tokens[places]
        return self.block(tokens, block, level=level)[0]


class TileHook:
    """A forward hook of the projector of a host whose tiles are all alike: its output is compressed.

    ``attention`` says what the tokens received in the tower, if the compressor needs that.
    """

    def __init__(self, compression: TokenCompression, grid: tuple[int, int], attention: Any = None) -> None:
        self.compression = compression
        self.grid = grid
        self.attention = attention

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        context = {} if self.attention is None else {"attention": self.attention.of_tokens(self.grid)}
        return self.compression(output, self.grid, **context)


class Override:
    """Stands for the method ``name`` of a host's module, as an attribute that shadows it; ``host`` is that method."""

    def __init__(self, owner: nn.Module, name: str, compression: TokenCompression) -> None:
        self.owner = owner
        self.name = name
        self.compression = compression

    @property
    def __signature__(self) -> inspect.Signature:
        """``generate`` looks at the method's arguments."""
        return inspect.signature(self.host)

    @property
    def host(self) -> Any:
        return getattr(type(self.owner), self.name).__get__(self.owner)


class VideoRows(Override):
    """A host's ``get_video_features`` whose frames are rows of one tensor: a compressor in time sees each video whole.

    ``[b * f, n, c]`` -> ``[b, n', c]``.
    """

    def __call__(self, pixel_values_videos: Tensor, *args: Any, **kwargs: Any) -> Any:
        output = self.host(pixel_values_videos, *args, **kwargs)
        videos, frames = pixel_values_videos.shape[:2]

        def compress(rows: Tensor) -> Tensor:
            block = Block(grid=(1, rows.shape[1]), frames=frames, video=True)
            each = rows.reshape(videos, -1, rows.shape[-1])
            return torch.stack([self.compression.block(video, block)[0] for video in each])

        return replace_features(output, compress)


def replace_features(output: Any, change: Any) -> Any:
    """Change the features in what a host's ``get_..._features`` returned, whatever it wraps them in."""
    if hasattr(output, "pooler_output"):
        output.pooler_output = change(output.pooler_output)
        return output
    if isinstance(output, tuple):
        first, *rest = cast(tuple[Any, ...], output)
        return (change(first), *rest)
    return change(output)


def mean_of_folded(width: int, wide: int) -> nn.Linear:
    """A layer that starts as the mean of the ``wide / width`` tokens that lie side by side."""
    identity = nn.Linear(width, width)
    with torch.no_grad():
        identity.weight.copy_(torch.eye(width))
        identity.bias.zero_()
    return widen(identity, wide)


def check_in_time(compressor: Compressor, reads_video: bool, model_type: str, reason: str) -> None:
    """Raises: ValueError for a compressor in time in a host that cannot give it whole videos."""
    if in_time(compressor) and not reads_video:
        raise ValueError(f"{type(compressor).__name__} mixes the frames of a video, but {model_type} {reason}")
