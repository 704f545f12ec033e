"""FP8 training: linear layers multiply in eight bits, and blocks keep their activations in eight bits.

The paper fits four times the batch that way and trains twice as fast on H100s. ``training`` changes the forward
passes of a module's layers while it lasts; their weights, their names and with them all checkpoints stay what they
were. The same recipe runs everywhere: on Transformer Engine where a Hopper GPU and the library are there, on
``torch._scaled_mm`` anywhere else, a CPU included, where it is exact but no faster. ``backend="nvila"`` multiplies by
the kernels of ``nvila_kernels`` instead; they have not been timed on a GPU.

Weights, gradients and optimizer states stay as they are; heads and embeddings, and layers whose sides are no
multiples of 16, stay in bfloat16.

Source: NVILA, section 2.3.1 and Table 5; COAT (arXiv 2410.19313).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch.nn.functional as F
from nvila_kernels import DelayedScale
from nvila_model.network import GatedMLP, RMSNorm
from torch import Tensor, nn

from nvila_train.fp8.engine import borrowed, engine
from nvila_train.fp8.linear import Rounding, linear8
from nvila_train.fp8.numbers import fits
from nvila_train.fp8.stored import stored
from nvila_train.trainer.precision import Precision, PrecisionName

__all__ = ["training"]

HEADS = ("lm_head", "patches", "written")
"""Parts whose linear layers stay in bfloat16."""


Histories = dict[str, DelayedScale]
"""What delayed scaling remembers, by ``<layer>.<tensor>``; empty for current scaling and Transformer Engine."""


@contextmanager
def training(
    module: nn.Module, precision: Precision | PrecisionName, *, recomputed: bool = False
) -> Iterator[Histories]:
    """Let the layers of a module run in FP8 while the context lasts, if the precision is ``fp8``.

    Args:
        recomputed: blocks are computed again in the backward pass; then nothing is kept in eight bits.
    """
    precision = Precision.of(precision)
    histories: Histories = {}
    changed = dict(forwards(module, precision.without_store() if recomputed else precision, histories))
    for layer, forward in changed.items():
        layer.forward = forward
    try:
        yield histories
    finally:
        for layer in changed:
            layer.__dict__.pop("forward", None)


def forwards(
    module: nn.Module, precision: Precision, histories: Histories
) -> Iterator[tuple[nn.Module, Callable[..., Tensor]]]:
    """Layers with their forward passes in FP8; what they remember is put into ``histories``."""
    if precision.name != "fp8":
        return
    for name, layer in module.named_modules():
        words = name.split(".")
        if type(layer) is nn.Linear:
            if (
                fits(layer.weight.shape)
                and not {*words} & {*HEADS}
                and not any(word.startswith("lora_") for word in words)
            ):
                rounding = Rounding(precision, layer.weight.device)
                histories |= {f"{name}.{what}": history for what, history in rounding.histories.items()}
                yield layer, linear_forward(layer, precision, rounding)
        elif precision.store and keeps_input(layer):
            yield layer, partial(small_forward, layer, type(layer).forward)
        elif precision.store and isinstance(layer, GatedMLP):
            yield layer, partial(gated_forward, layer)


def keeps_input(layer: nn.Module) -> bool:
    """Norms and activation functions; timm and transformers have GELUs of their own."""
    return isinstance(layer, RMSNorm | nn.LayerNorm) or type(layer).__name__.startswith("GELU")


def linear_forward(layer: nn.Linear, precision: Precision, rounding: Rounding) -> Callable[[Tensor], Tensor]:
    library = engine(layer.weight.device) if precision.backend == "torch" else None
    if library is not None:
        return borrowed(layer, library, precision)
    return lambda x: linear8(x, layer.weight, layer.bias, rounding)


def small_forward(layer: nn.Module, forward: Callable[..., Tensor], x: Tensor) -> Tensor:
    return stored(partial(forward, layer), x, parameters=tuple(layer.parameters()))


def gated_forward(layer: GatedMLP, x: Tensor) -> Tensor:
    return layer.down_proj(stored(gate, layer.gate_proj(x), layer.up_proj(x)))


def gate(opened: Tensor, value: Tensor) -> Tensor:
    """``silu(opened) * value``."""
    return F.silu(opened) * value
