"""AdamW on weights in bfloat16 that loses no small step: what does not fit is rounded up or down at random.

A weight in bfloat16 has eight bits, so a step below a 512th of it is lost to rounding, always; late in a run that is
nearly every step. Here the step is computed in float32, and its result goes to one of the two neighbouring bfloat16
numbers, to the nearer one more often: up with the probability ``(x - down) / (up - down)``. In the mean that is the
float32 weight itself, so steps that are too small to be seen add up over many. What AdamW remembers is kept the same
way. Eight bytes a parameter (weight, gradient and two states of two bytes each) instead of sixteen in float32; the
price is noise of a bit in every weight, and some time for random numbers.

These follow from the seed, the step, the parameter and the place in it. So a resumed run draws the same ones, processes
that hold the same weight move it alike, and those that hold a share of it draw what one would that holds all.

Sources: Gupta et al., "Deep learning with limited numerical precision" (arXiv 1502.02551); torchao's optimizers with
``bf16_stochastic_round``.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from math import sqrt
from random import Random
from typing import Any, Final

import torch
from torch import Tensor

from nvila_train.trainer import distributed

BLOCK: Final = {"cuda": 2**24, "cpu": 2**17}
"""Numbers that are moved at once, for which random ones are drawn together: a GPU wants many (they take about 500 MB in
float32), a processor what its caches hold."""

HIGH: Final = -(2**16)
"""The bits of a float32 that bfloat16 keeps: the upper sixteen."""

LOW: Final = 2**16 - 1


def rounded(values: Tensor, noise: Tensor) -> Tensor:
    """Round at random. Shapes: float32 and int16 with all its values as likely, alike -> bfloat16.

    The noise is added to the sixteen bits that are cut off; where it carries, the number becomes the next larger one
    in magnitude.
    """
    bits = values.view(torch.int32) + noise.int().bitwise_and_(LOW)
    return bits.bitwise_and_(HIGH).view(torch.float32).bfloat16()


def drawn(count: int, *, device: torch.device, generator: torch.Generator) -> Tensor:
    """Random int16, four to a number of the generator's."""
    words = torch.empty(-(-count // 4), dtype=torch.int64, device=device)
    return words.random_(-(2**63), None, generator=generator).view(torch.int16)[:count]


@dataclass(frozen=True, kw_only=True)
class Share:
    """Some rows of a parameter, in one of the blocks that random numbers are drawn for.

    Attributes:
        block: its number in the whole parameter.
        size: rows of the block.
        drawn: those of them that this process holds.
        held: the same ones among all that it holds.
    """

    block: int
    size: int
    drawn: slice
    held: slice


def shares(rows: int, wide: int, *, first: int, held: int, block_size: int) -> Iterator[Share]:
    """Cut the rows ``first`` to ``first + held`` of a parameter at the bounds of its blocks.

    Args:
        rows: of the whole parameter.
        wide: numbers in a row.
        block_size: numbers in a block, at least a row.
    """
    height = max(1, block_size // max(1, wide))
    for block in range(first // height, -(-(first + held) // height)):
        begin, end = block * height, min(rows, (block + 1) * height)
        low, high = max(begin, first), min(end, first + held)
        if low < high:
            yield Share(
                block=block,
                size=end - begin,
                drawn=slice(low - begin, high - begin),
                held=slice(low - first, high - first),
            )


class RoundedAdamW(torch.optim.Optimizer):
    """AdamW without weight decay, for parameters in bfloat16.

    Args:
        groups: of parameters, with their ``lr``.
        seed: of the rounding.
        betas: decays of the means of gradients and of their squares.
        eps: added to the root of the latter.

    Raises: ValueError for a parameter in another format.
    """

    def __init__(
        self,
        groups: Iterable[Mapping[str, Any]],
        *,
        seed: int,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
    ) -> None:
        super().__init__([dict(group) for group in groups], {"betas": betas, "eps": eps})
        self.seed = seed
        kinds = {parameter.dtype for group in self.param_groups for parameter in group["params"]} - {torch.bfloat16}
        if kinds:
            raise ValueError(f"a parameter of {kinds.pop()} is not rounded to bfloat16: use torch.optim.AdamW for it")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Move every parameter that has a gradient."""
        assert closure is None
        numbers = count()
        for group in self.param_groups:
            for parameter in group["params"]:
                number = next(numbers)
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros(())
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)
                state["step"] += 1
                self._move(parameter, group, state, number)

    def _move(self, parameter: Tensor, group: Mapping[str, Any], state: Mapping[str, Tensor], number: int) -> None:
        """Move one parameter, block after block."""
        assert parameter.grad is not None
        step = int(state["step"])
        kept = [torch.atleast_1d(mine(each)) for each in (parameter, state["exp_avg"], state["exp_avg_sq"])]
        gradient = torch.atleast_1d(mine(parameter.grad))
        rows, first = place(parameter)
        wide = gradient.numel() // max(1, len(gradient))
        generator = torch.Generator(gradient.device if gradient.is_cuda else "cpu")
        size = BLOCK["cuda" if gradient.is_cuda else "cpu"]
        for share in shares(rows, wide, first=first, held=len(gradient), block_size=size):
            generator.manual_seed(Random(f"{self.seed}/{step}/{number}/{share.block}").getrandbits(63))
            noise = drawn(len(kept) * share.size * wide, device=gradient.device, generator=generator)
            noise = noise.view(len(kept), share.size, *gradient.shape[1:])[:, share.drawn]
            parts = [each[share.held] for each in kept]
            weight, mean, square = (part.float() for part in parts)
            found = moved(weight, mean, square, gradient[share.held].float(), group=group, step=step)
            for part, value, own in zip(parts, found, noise, strict=True):
                part.copy_(rounded(value, own))


def moved(
    weight: Tensor, mean: Tensor, square: Tensor, gradient: Tensor, *, group: Mapping[str, Any], step: int
) -> tuple[Tensor, Tensor, Tensor]:
    """AdamW's new weight and states, in float32 and in place; ``step`` counts from 1."""
    first, second = group["betas"]
    mean.lerp_(gradient, 1 - first)
    square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
    spread = (square.sqrt() / sqrt(1 - second**step)).add_(group["eps"])
    weight.addcdiv_(mean, spread, value=-group["lr"] / (1 - first**step))
    return weight, mean, square


def mine(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    local = getattr(tensor, "to_local", None)
    return local() if local else tensor


def place(tensor: Tensor) -> tuple[int, int]:
    """Rows of a whole parameter, and the first one that this process holds.

    FSDP gives each process the same number of rows, and the last ones what is left.
    """
    rows = tensor.shape[0] if tensor.ndim else 1
    if not hasattr(tensor, "to_local"):
        return rows, 0
    return rows, min(rows, distributed.rank() * -(-rows // distributed.world()))
