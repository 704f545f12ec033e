"""What a training step takes, before it is run: bytes by part, and operations.

A whole step, forward and backward, runs on fake tensors: they have shapes and lifetimes but no memory, so a model
of 15 billion parameters is tried on a laptop. What is alive is counted as it comes and goes (see ``live_bytes``), with
recomputation, FP8 and adapters as they really run. Counted are tensors; what allocators, libraries and a CUDA
context take comes on top.

The data of a step are conversations of one image each: the visual tokens, then text, of which the last part is
learnt.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from nvila_model import NVILA, NVILAConfig
from nvila_model.checkpoint import set_parameter
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from nvila_train import fp8
from nvila_train.estimate.live_bytes import Live
from nvila_train.estimate.operations import Operations
from nvila_train.trainer.blocks import Recompute, prepared
from nvila_train.trainer.precision import Precision, PrecisionName, computing
from nvila_train.tuning import LanguageTuning, ProjectorTuning, VisionTuning, tune
from nvila_train.tuning.nf4 import BITS

STATES = 2
"""Numbers that AdamW remembers of each parameter."""

RESERVE = 2**30
"""Bytes of a card that a CUDA context and its libraries are taken to need; an assumption, not measured."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """The data of one step on one device.

    Attributes:
        samples: conversations that are run together.
        image: width and height of the image in each.
        text: tokens of text in each.
        answer: of those, the last ones, which are learnt.
    """

    samples: int = 1
    image: tuple[int, int] = (1344, 896)
    text: int = 256
    answer: int = 64


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a step takes, in bytes.

    Attributes:
        weights: of all parts.
        gradients, optimizer: of what learns, with two states a parameter.
        activations: alive between the forward and the backward pass, copies of weights in another format included.
        peak: the most that is alive at once, the optimizer's states included.
        flops: operations of one step, forward and backward.
        learning: numbers that learn.
        tokens: positions of the language model.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    peak: int
    flops: int
    learning: int
    tokens: int

    def fits(self, card: int) -> bool:
        """Whether a card of so many bytes holds it, with ``RESERVE`` left over."""
        return self.peak + RESERVE <= card


def estimate_step(
    config: NVILAConfig,
    load: Load,
    *,
    vision: VisionTuning = "full",
    llm: LanguageTuning = "full",
    projector: ProjectorTuning = "full",
    rank: int = 16,
    precision: Precision | PrecisionName = "fp32",
    recompute: Recompute = "none",
    dtype: torch.dtype = torch.float32,
    frozen: torch.dtype | None = None,
) -> Cost:
    """Try one step on fake tensors.

    Args:
        vision, llm, projector, rank: what learns, as in ``tune``.
        recompute: what the blocks of both towers compute again.
        dtype: of the weights, except those in 4 bits.
        frozen: of the weights that do not learn; the same by default.
    """
    model = NVILA.outline(config)
    adapted = "lora" in (vision, llm) or llm == "qlora"
    if adapted:  # before there are fake tensors, which ``peft`` cannot convert
        tune(model, vision, "lora" if llm == "qlora" else llm, projector=projector, rank=rank)
    else:
        freeze(model, {"vision": vision, "llm": llm, "projector": projector})
    with FakeTensorMode():
        filled(model, dtype, frozen=dtype if frozen is None else frozen)
        packed = four_bits(model.llm.layers) if llm == "qlora" else ()
        return tried(model.train(), load, Precision.of(precision), recompute, packed)


def filled(model: NVILA, dtype: torch.dtype, *, frozen: torch.dtype | None = None) -> NVILA:
    """An outline with weights of no particular value; in a ``FakeTensorMode`` they take no memory.

    Args:
        dtype: of the weights.
        frozen: of those that do not learn; the same by default.
    """
    for name, parameter in list(model.named_parameters()):
        kind = dtype if parameter.requires_grad or frozen is None else frozen
        set_parameter(model, name, torch.empty(parameter.shape, dtype=kind))
        model.get_parameter(name).requires_grad_(parameter.requires_grad)
    return model


def freeze(model: NVILA, ways: dict[str, str]) -> None:
    """What ``tune`` does where nothing is adapted, without ``peft``."""
    for part, way in ways.items():
        for module in model.get_submodule(part).modules():
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(way == "full" or (way == "layernorm" and isinstance(module, nn.LayerNorm)))


def tried(model: NVILA, load: Load, precision: Precision, recompute: Recompute, packed: Sequence[Tensor] = ()) -> Cost:
    """Run a step and count; ``packed`` are weights that are no parameters."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = sum(parameter.numel() * parameter.element_size() for parameter in learning)
    blocks = [*model.llm.layers, *model.get_submodule("vision.blocks").children()]
    with ExitStack() as stack:
        stack.enter_context(fp8.training(model, precision, recomputed=recompute != "none"))
        stack.enter_context(prepared(blocks, recompute=recompute))
        count = stack.enter_context(Operations())
        live = stack.enter_context(Live())
        live.add((*model.parameters(), *packed))
        weights = live.now
        with computing(precision):
            loss, tokens = step_loss(model, load)
        activations = live.now - weights
        loss.backward()
    return Cost(
        weights=weights,
        gradients=gradients,
        optimizer=STATES * gradients,
        activations=activations,
        peak=max(live.peak, weights + gradients) + STATES * gradients,
        flops=count.total,
        learning=sum(parameter.numel() for parameter in learning),
        tokens=tokens,
    )


def step_loss(model: NVILA, load: Load) -> tuple[Tensor, int]:
    """The loss of the load, and its positions."""
    plan = model.needed_processor().tiler_for(1).plan(*load.image)
    tiles = torch.zeros(load.samples * plan.tiles, 3, plan.tile, plan.tile)
    images = [torch.cat(parts) for parts in model.media_tokens(tiles, [plan] * load.samples)]
    words = model.llm.embed_tokens(torch.zeros(load.samples, load.text, dtype=torch.int64))
    embeds = torch.stack([torch.cat((image.to(row.dtype), row)) for image, row in zip(images, words, strict=True)])
    hidden = model.llm(embeds)
    scores = model.llm.logits(hidden[:, -load.answer :]).float().flatten(0, 1)
    return F.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.int64)), embeds.shape[0] * embeds.shape[1]


def four_bits(blocks: nn.Module) -> list[Tensor]:
    """Let every frozen linear layer of these blocks hold and compute what one in 4 bits does; returns the weights."""
    packed: list[Tensor] = []
    for name, layer in blocks.named_modules():
        if isinstance(layer, nn.Linear) and "lora_" not in name:
            numbers = layer.weight.numel()
            packed.append(torch.empty(round(numbers * BITS / 8), dtype=torch.uint8))
            forward: Any = partial(unpacking, packed[-1], layer.weight.shape, layer.bias)
            layer.forward = forward
            layer.weight = nn.Parameter(torch.empty(0, dtype=layer.weight.dtype), requires_grad=False)
    return packed


def unpacking(packed: Tensor, shape: torch.Size, bias: Tensor | None, x: Tensor) -> Tensor:
    """A layer in 4 bits; like ``bitsandbytes``' it computes in the format of its input, whatever autocast says."""
    out = Unpacking.apply(x, packed, shape)
    assert isinstance(out, Tensor)
    return out if bias is None else out + bias.to(out.dtype)


class Unpacking(torch.autograd.Function):
    """A product with a weight that exists while it is computed only, forward and again backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, shape: torch.Size) -> Tensor:
        ctx.shape = shape
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x, x.new_empty(shape))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradient @ gradient.new_empty(ctx.shape), None, None
