"""Products by the weights of layers that were not settled: packed at first use, as long as the weight lives.

A weight is known by its storage and the number of writes to it, so that one that was loaded anew is packed anew.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F

from nvila_kernels import reference
from nvila_kernels.cpu.kernel import Codes
from nvila_kernels.cpu.packed_linear import chosen
from nvila_kernels.cpu.packed_weight import PackedWeight, prepare
from nvila_kernels.cpu.shape import in_blocks, shape_of
from nvila_kernels.quantization import Int8Codes

_held: dict[tuple[Any, ...], tuple[Any, PackedWeight]] = {}


def held(weight: Tensor, scale: Tensor, extra: tuple[Any, ...], codes: Callable[[], Codes]) -> PackedWeight:
    """The packing of a weight, made by ``codes`` if there is none."""
    owner: Any = StorageWeakRef(weight.untyped_storage())
    versions = tuple(None if each.is_inference() else each._version for each in (weight, scale))
    key = (owner.cdata, *versions, *extra)
    if key not in _held:
        for old, (ref, _) in list(_held.items()):
            if ref.expired() or old[0] == owner.cdata:
                del _held[old]
        made = in_blocks(codes())
        _held[key] = owner, prepare(made, chosen(shape_of(made)))
    return _held[key][1]


def w4a16_linear(
    x: Tensor,
    packed: Tensor,
    scale_zero: Tensor,
    bias: Tensor | None,
    group_size: int,
    scale_dtype: torch.dtype,
    half_accumulate: bool,
) -> Tensor:
    """``x @ dequantize(weight).T + bias`` by the fastest kernel; ``half_accumulate`` changes nothing here."""
    width = x.shape[-1]
    prepared = held(
        packed, scale_zero, (width, group_size, scale_dtype),
        lambda: reference.int4_codes(packed, scale_zero, width, group_size, scale_dtype),
    )  # fmt: skip
    out = prepared.run(x)
    return out if bias is None else out + bias.to(out.dtype)


def int8_linear(
    x: Tensor,
    x_scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    gelu: bool,
    dtype: torch.dtype,
) -> Tensor:
    """int8 ``[m, k]`` times int8 ``[n, k]``, scaled, with bias and GELU: ``[m, n]`` of ``dtype``.

    The kernels quantize floats: codes times their scale, for which they find the same scale again where a code is
    127, as it is for scales a token.
    """
    prepared = held(weight, weight_scale, (), lambda: Int8Codes(codes=weight, scale=weight_scale))
    out = prepared.run(x.float() * x_scale[:, None])
    if bias is not None:
        out = out + bias.float()
    return (F.gelu(out, approximate="tanh") if gelu else out).to(dtype)
