"""Frozen weights in 4 bits: the base under an adapter.

A weight is one of 16 values (NF4, the quantiles of a normal distribution) times the largest weight of its block of
64; these factors are themselves 8-bit numbers in blocks of 256 (double quantization). A weight takes 4.13 bits.
Nothing learns here: gradients pass through the unpacked weights to the adapter and to what is below.

Source: QLoRA (arXiv 2305.14314), sections 2 and 3; the packing is ``bitsandbytes``'.
"""

import logging
from importlib import import_module
from typing import Any

from torch import Tensor, nn

BITS = 4 + 8 / 64 + 32 / (64 * 256)
"""Bits of a weight with its share of both levels of factors."""


class MissingExtraError(ImportError, RuntimeError):
    """A library that an extra of this package brings is not installed; the message names the extra."""


def extra(library: str, name: str) -> Any:
    """Import a library of the extra ``name``. Raises: MissingExtraError."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of kernels that are not used here
    try:
        return import_module(library)
    except ModuleNotFoundError as error:
        if error.name != library:
            raise
        raise MissingExtraError(f"{library} is not installed: pip install 'nvila-train[{name}]'") from None


def pack_linears(module: nn.Module) -> None:
    """Replace every linear layer inside a module by a frozen one in NF4 with double quantization, one at a time.

    Raises: MissingExtraError without ``bitsandbytes``.
    """
    bnb = extra("bitsandbytes", "qlora")
    for name, layer in list(module.named_modules()):
        if type(layer) is nn.Linear:
            parent, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent), leaf, packed(layer, bnb))


def packed(layer: nn.Linear, bnb: Any) -> nn.Module:
    """A linear layer in NF4; its bias stays as it is."""
    weight = layer.weight.detach()
    small = bnb.nn.Linear4bit(
        layer.in_features, layer.out_features, bias=False, compress_statistics=True, quant_type="nf4", device="meta"
    )
    small.weight = bnb.nn.Params4bit(
        weight, requires_grad=False, compress_statistics=True, quant_type="nf4", module=small
    ).to(weight.device)
    small.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach(), requires_grad=False)
    # Processors with bfloat16 instructions would repack the weights to answer, and answer otherwise than they learnt.
    small.support_avx512bf16_for_cpu = False
    return small


def is_packed(layer: nn.Module) -> bool:
    """Whether a layer's weight is in 4 bits."""
    return hasattr(layer.weight, "quant_state")


def unpacked(layer: nn.Module) -> Tensor:
    """The weight that a layer computes with. Shape: ``[out, in]``."""
    weight: Any = layer.weight
    if not is_packed(layer):
        return weight.detach()
    state = weight.quant_state
    return extra("bitsandbytes", "qlora").functional.dequantize_4bit(weight.data, state).to(state.dtype)


def packed_bytes(layer: nn.Module) -> int:
    """Bytes of a packed weight with its factors."""
    weight: Any = layer.weight
    state = weight.quant_state
    tensors: list[Tensor] = [weight, state.absmax, *([state.state2.absmax] if state.nested else [])]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
