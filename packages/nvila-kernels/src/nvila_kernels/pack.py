"""Four-bit codes in memory: planar inside blocks of 128 input features.

A dequantizing kernel wants three things of its layout: a tile must be one contiguous piece of memory, one
16-bit word must give codes that a single mask separates, and the activations that meet those codes must be
contiguous as well. Interleaved layouts (AutoAWQ, GPTQ) give the first two and then shuffle the activations.
The planar one gives all three: inside a block of 128 input features, nibble ``j`` of word ``r`` holds feature
``32 j + r``, so that one mask yields 32 consecutive features, which meet the contiguous slice
``x[128 b + 32 j : 128 b + 32 j + 32]``.

``codes n (b j r) -> words b n r,  word = sum_j code_j << 4 j``

The layout lives in memory only. Files hold the formats of ``nvila_kernels.formats``.
"""

import torch
from einops import rearrange
from torch import Tensor

__all__ = [
    "BLOCK",
    "KERNEL_GROUPS",
    "NO_SCALE",
    "blocks",
    "kernel_group",
    "kernel_groups",
    "pack_int4",
    "pack_scale_zero",
    "unpack_int4",
    "unpack_scale_zero",
]

BLOCK = 128
"""Input features of one block; K is padded up to a multiple of it."""

NO_SCALE = 0x6400
"""The packed word of scale 0 and zero point 0: 1024 as float16."""

KERNEL_GROUPS = (32, 64, 128)
"""Group sizes that the kernels read directly, besides a whole row."""


def blocks(in_features: int) -> int:
    """How many blocks of 128 hold ``in_features`` features."""
    return -(-in_features // BLOCK)


def pack_int4(codes: Tensor) -> Tensor:
    """Pack 4-bit codes into the planar layout.

    Shapes: codes ``[n, k]`` of any integer type, each 0..15 -> int16 ``[ceil(k/128), n, 32]``. Padding holds
    code 0.
    Raises: ValueError for a code outside 0..15 or a tensor that is not a matrix.
    """
    if codes.ndim != 2:
        raise ValueError(f"codes have {codes.ndim} dimensions, 2 are needed: pass one [n, k] matrix")
    if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) > 15):
        raise ValueError(f"codes span {int(codes.min())}..{int(codes.max())}, 0..15 fit: quantize to 4 bits first")
    padding = blocks(codes.shape[1]) * BLOCK - codes.shape[1]
    codes = torch.nn.functional.pad(codes.to(torch.uint8), (0, padding))
    planes = rearrange(codes, "n (b j r) -> j b n r", j=4, r=32)
    # Whole bytes first: a model's weights are packed on machines that barely hold them, and int32 would take
    # 8 times the room.
    low = planes[0] | planes[1] << 4
    high = planes[2] | planes[3] << 4
    return torch.stack([low, high], dim=-1).view(torch.int16).squeeze(-1)


def unpack_int4(packed: Tensor, in_features: int) -> Tensor:
    """The exact inverse of :func:`pack_int4`.

    Shapes: int16 ``[b, n, 32]`` -> uint8 ``[n, in_features]``.
    Raises: ValueError if ``in_features`` does not take ``b`` blocks.
    """
    if blocks(in_features) != packed.shape[0]:
        raise ValueError(
            f"{in_features} features take {blocks(in_features)} blocks of {BLOCK}, the packed weight has "
            f"{packed.shape[0]}: "
            "pass the number of features that was packed"
        )
    halves = rearrange(packed.contiguous().unsqueeze(-1).view(torch.uint8), "b n r half -> n b half r").contiguous()
    planes = torch.stack([halves & 15, halves >> 4], dim=3)
    return rearrange(planes, "n b half two r -> n (b half two r)")[:, :in_features].contiguous()


def kernel_group(in_features: int, group_size: int) -> int:
    """The group size that the kernels see: 32, 64, 128, or 0 for a whole row.

    Larger multiples of 128 become 128, their scales repeated.
    Raises: ValueError for any other size.
    """
    if group_size >= in_features or group_size <= 0:
        return 0
    if group_size in KERNEL_GROUPS:
        return group_size
    if group_size % BLOCK == 0:
        return BLOCK
    raise ValueError(
        f"group size {group_size} is none of 32, 64, a multiple of 128 or a whole row: requantize the weight"
    )


def kernel_groups(in_features: int, group: int) -> int:
    """How many groups of ``kernel_group`` features the packed scales hold: those of whole blocks, or one for a row."""
    return blocks(in_features) * (BLOCK // group) if group else 1


def pack_scale_zero(scale: Tensor, zero: Tensor, *, in_features: int, group_size: int) -> Tensor:
    """Put each group's scale and zero point into one 32-bit word: the scale above, ``1024 + zero`` as float16 below.

    One word, so that the GPU can fetch both with one asynchronous copy (4 bytes is its smallest). The kernels make
    ``1024 + code`` of each code and take the lower half off as it stands; its last 6 bits are the zero point itself.

    A kernel reads whole blocks of 128 features, so the groups are filled up to whole blocks, with scales of 0.

    Shapes: scale float16 or bfloat16 ``[n, g]``, zero integer ``[n, g]`` in 0..63 -> int32 ``[g', n]``, where
    ``g'`` is that of :func:`kernel_groups`.
    Raises: ValueError for another scale type or a zero point outside 0..63.
    """
    if scale.dtype not in (torch.float16, torch.bfloat16):
        raise ValueError(f"scales are {scale.dtype}, float16 or bfloat16 fit the packed word: cast them first")
    if zero.numel() and (int(zero.min()) < 0 or int(zero.max()) > 63):
        raise ValueError(f"zero points span {int(zero.min())}..{int(zero.max())}, 0..63 fit: requantize the weight")
    group = kernel_group(in_features, group_size)
    if group == BLOCK and group_size > BLOCK:
        repeats = group_size // BLOCK
        scale = scale.repeat_interleave(repeats, dim=1)[:, : blocks(in_features)]
        zero = zero.repeat_interleave(repeats, dim=1)[:, : blocks(in_features)]
    bits = scale.contiguous().view(torch.int16).to(torch.int32)
    words = rearrange(bits << 16 | zero.to(torch.int32) | NO_SCALE, "n g -> g n")
    missing = kernel_groups(in_features, group) - len(words)
    return torch.nn.functional.pad(words, (0, 0, 0, missing), value=NO_SCALE).contiguous()


def unpack_scale_zero(scale_zero: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The inverse of :func:`pack_scale_zero`: scales of ``dtype`` ``[n, g]`` and uint8 zero points ``[n,
    g]``.
    """
    words = rearrange(scale_zero, "g n -> n g")
    scale = (words >> 16).to(torch.int16).view(dtype)
    return scale, (words & 0xFF).to(torch.uint8)
