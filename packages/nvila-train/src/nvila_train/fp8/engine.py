"""Transformer Engine, where there is one: the same recipe on Hopper and later GPUs, with its fused kernels.

It is asked for nothing before it is needed. Its layers borrow our weights, so names and checkpoints stay as they are.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import import_module
from typing import Any, Final

import torch
from torch import Tensor, nn

from nvila_train.trainer.precision import Precision

HOPPER: Final = (9, 0)
"""The first compute capability with FP8 products."""


def engine(device: torch.device) -> Any | None:
    """``transformer_engine.pytorch`` if the device can use it and it is installed; None means torch's own product."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < HOPPER:
        return None
    try:
        return import_module("transformer_engine.pytorch")
    except ModuleNotFoundError:
        return None


def recipe_of(precision: Precision) -> Any:
    """The engine's own description: E4M3 forward, E5M2 backward, factors as asked for.

    Raises: ValueError for a factor for each row, which it does not have.
    """
    if precision.granularity == "row":
        raise ValueError("Transformer Engine has no factor for each row: use granularity 'tensor'")
    known = import_module("transformer_engine.common.recipe")
    if precision.scaling == "current":
        return known.Float8CurrentScaling(fp8_format=known.Format.HYBRID)
    return known.DelayedScaling(
        fp8_format=known.Format.HYBRID, amax_history_len=precision.history, amax_compute_algo="max"
    )


def borrowed(layer: nn.Linear, library: Any, precision: Precision) -> Callable[[Tensor], Tensor]:
    """The forward pass of the engine's layer, with this layer's weights."""
    other = library.Linear(
        layer.in_features,
        layer.out_features,
        bias=layer.bias is not None,
        params_dtype=layer.weight.dtype,
        device="meta",
    )
    recipe = recipe_of(precision)

    def forward(x: Tensor) -> Tensor:
        other.weight = layer.weight
        if layer.bias is not None:
            other.bias = layer.bias
        context: AbstractContextManager[Any] = library.fp8_autocast(enabled=True, fp8_recipe=recipe)
        with context:
            return other(x)

    return forward
