"""Eight 4-bit codes in a 32-bit word, in the order that a format asks for."""

from typing import Final

import torch
from einops import rearrange
from torch import Tensor

NATURAL: Final = (0, 1, 2, 3, 4, 5, 6, 7)
AWQ: Final = (0, 2, 4, 6, 1, 3, 5, 7)
"""AutoAWQ's: the code in nibble ``i``, counted from the lowest, is number ``AWQ[i]`` of the eight."""

PER_WORD: Final = 8


def pack_words(codes: Tensor, order: tuple[int, ...] = NATURAL) -> Tensor:
    """Codes along the last axis into words. Shapes: uint8 ``[..., 8 m]``, each 0..15 -> int32 ``[..., m]``.

    Raises: ValueError if the last axis is no multiple of 8.
    """
    if codes.shape[-1] % PER_WORD:
        raise ValueError(f"{codes.shape[-1]} codes do not fill words of {PER_WORD}: the layer has another width")
    nibbles = rearrange(codes.to(torch.uint8), "... (m eight) -> ... m eight", eight=PER_WORD)[..., list(order)]
    pairs = nibbles[..., 0::2] | nibbles[..., 1::2] << 4
    return pairs.contiguous().view(torch.int32).squeeze(-1)


def unpack_words(words: Tensor, order: tuple[int, ...] = NATURAL) -> Tensor:
    """The inverse of ``pack_words``. Shapes: int32 ``[..., m]`` -> uint8 ``[..., 8 m]``."""
    nibbles = split_bytes(words.to(torch.int32).contiguous().unsqueeze(-1).view(torch.uint8))
    if order != NATURAL:
        nibbles = nibbles[..., [order.index(number) for number in range(PER_WORD)]]
    return rearrange(nibbles, "... m eight -> ... (m eight)")


def unpack_columns(words: Tensor, order: tuple[int, ...] = NATURAL) -> Tensor:
    """``unpack_words(words, order).T``, several times faster: bytes are turned, and codes written where they belong.

    Shapes: int32 ``[k, m]`` -> uint8 ``[8 m, k]``.
    """
    four = words.to(torch.int32).T.contiguous().unsqueeze(-1).view(torch.uint8)
    pairs = rearrange(four, "m k pair -> pair m k").contiguous()
    codes = torch.empty(words.shape[1], PER_WORD, len(words), dtype=torch.uint8, device=words.device)
    for index, pair in enumerate(pairs):
        torch.bitwise_and(pair, 15, out=codes[:, order[2 * index]])
        torch.bitwise_right_shift(pair, 4, out=codes[:, order[2 * index + 1]])
    return rearrange(codes, "m eight k -> (m eight) k")


def split_bytes(pairs: Tensor) -> Tensor:
    """The lower and upper half of every byte. Shapes: uint8 ``[..., b]`` -> ``[..., 2 b]``."""
    return rearrange(torch.stack((pairs & 15, pairs >> 4), dim=-1), "... pair two -> ... (pair two)")
