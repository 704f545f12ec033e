"""A float copy of the weight: right everywhere, large, and hard to beat where a machine has no integer products."""

from torch import Tensor
from torch.nn import functional as F

from nvila_kernels.cpu.arena import Arena
from nvila_kernels.cpu.kernels.kernel import Codes, Kernel, Run
from nvila_kernels.quantization import Int4Codes, dequantize_int4


def float_weight(codes: Codes) -> Tensor:
    """The weight that the codes stand for, float32 ``[n, k]``."""
    if isinstance(codes, Int4Codes):
        return dequantize_int4(codes)
    return codes.codes.float() * codes.scale[:, None]


def pack(codes: Codes, arena: Arena) -> Run:
    weight = float_weight(codes)
    return lambda x: F.linear(x, weight)


DENSE4 = Kernel(
    name="dequantized float32", bits=4, activations="float32", bytes=lambda n, k, group: 4.0 * n * k, pack=pack
)
