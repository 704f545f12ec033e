"""Blocks of a network that are computed again in the backward pass, or compiled.

Recomputing keeps a block's input only and runs its forward pass once more when its gradient is due: about a third more
work for a fraction of the memory. ``selective`` also keeps what is dear to compute, the matrix products and the
attention, and recomputes what is cheap: norms, activations, additions.

Source: Chen et al., "Training deep nets with sublinear memory cost" (arXiv 1604.06174); Korthikanti et al., "Reducing
activation recomputation in large transformer models" (arXiv 2205.05198) for the selective kind.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, Literal

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from nvila_train.trainer.precision import attention

Recompute = Literal["none", "block", "selective"]

aten = torch.ops.aten

DEAR: Final = frozenset(
    {
        aten.mm.default,
        aten.addmm.default,
        aten.bmm.default,
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
    }
)
"""Operations whose results ``selective`` keeps."""


@contextmanager
def prepared(blocks: Sequence[nn.Module], *, recompute: Recompute = "none", compiled: bool = False) -> Iterator[None]:
    """Recompute and compile these blocks while the context lasts; names and parameters stay as they are."""
    for block in blocks:
        if recompute != "none":
            block.forward = recomputed(block.forward, recompute)
        if compiled:
            block.compile()
    try:
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)
            if compiled:
                block._compiled_call_impl = None


def recomputed(forward: Callable[..., Any], how: Recompute) -> Callable[..., Any]:
    """A block's forward pass whose intermediate results are not kept."""
    forward = partial(as_before, forward)
    if how == "selective":
        contexts = partial(create_selective_checkpoint_contexts, keep_dear)
        return partial(checkpoint, forward, use_reentrant=False, context_fn=contexts)
    return partial(checkpoint, forward, use_reentrant=False)


def as_before(forward: Callable[..., Any], *given: Any) -> Any:
    """A forward pass that is the same the second time, when the loss is done: torch brings back autocast alone."""
    with attention():
        return forward(*given)


def keep_dear(context: Any, operation: Any, *_: Any, **__: Any) -> CheckpointPolicy:
    """What to do with an operation's result."""
    return CheckpointPolicy.MUST_SAVE if operation in DEAR else CheckpointPolicy.PREFER_RECOMPUTE
