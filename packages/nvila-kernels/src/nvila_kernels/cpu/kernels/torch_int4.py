"""torch's packed 4 bits: activations in bfloat16, the weight in 4 bits and one bfloat16 scale a group.

The float32 form of the same operator is hundreds of times slower (it has no vectorized path), so activations are
always cast.
"""

import torch
from torch import Tensor

from nvila_kernels.cpu.arena import Arena
from nvila_kernels.cpu.kernels.kernel import Codes, Kernel, Run
from nvila_kernels.quantization import Int4Codes, pad_features

GROUPS = (32, 64, 128, 256)
COLUMNS = 16
"""Outputs come in multiples of it."""
AT_ONCE = 4096
"""Outputs that are packed at a time, whole blocks of the operator: it takes codes of four bytes."""


def pack(codes: Codes, arena: Arena) -> Run:
    """Raises: ValueError for groups that the operator does not know."""
    assert isinstance(codes, Int4Codes)
    n, k, group = codes.out_features, codes.in_features, codes.group_size
    if group not in GROUPS:
        raise ValueError(f"groups of {group}; it takes {', '.join(map(str, GROUPS))}")
    if k % group:
        raise ValueError(f"{k} inputs are not whole groups of {group}")
    rows = -n % COLUMNS
    padded = torch.nn.functional.pad(codes.codes, (0, 0, 0, rows))
    convert = torch.ops.aten._convert_weight_to_int4pack_for_cpu
    words = torch.cat([convert(padded[at : at + AT_ONCE].to(torch.int32), 1) for at in range(0, len(padded), AT_ONCE)])
    scale, zero = codes.scale.float(), codes.zero.float()
    pairs = torch.stack([scale, (8 - zero) * scale], dim=-1).transpose(0, 1)  # the operator counts from code 8
    pairs = torch.nn.functional.pad(pairs, (0, 0, 0, rows)).to(torch.bfloat16).contiguous()

    def run(x: Tensor) -> Tensor:
        out = torch.ops.aten._weight_int4pack_mm_for_cpu(pad_features(x, k).to(torch.bfloat16), words, group, pairs)
        return out[:, :n].float()

    return run


def missing() -> str | None:
    known = hasattr(torch.ops.aten, "_weight_int4pack_mm_for_cpu")
    return None if known else f"torch {torch.__version__} has no packed 4-bit product for CPUs"


def size(n: int, k: int, group: int) -> float:
    return n * k * (0.5 + 4 / group)


TORCH_INT4 = Kernel(name="torch int4", bits=4, activations="bfloat16", bytes=size, pack=pack, missing=missing)
