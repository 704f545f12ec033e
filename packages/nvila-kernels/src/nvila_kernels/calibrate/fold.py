"""Move a factor from the activations into the weights without changing the function.

    W x = (W diag(s)) (diag(1/s) x)

``diag(1/s)`` costs nothing if the module that makes ``x`` can take it up: a norm divides its weight and bias, a
linear layer its rows. It must be the last module before ``x``, up to operations that treat each channel alone
and linearly (a gate that multiplies, attention that averages over tokens), and nothing else may read it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange, repeat
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Names inside a block: who makes an activation, and every linear layer that reads it.

    Args:
        source: a norm with a weight for each channel, or a linear layer.
        targets: the layers that read what the source makes, and share one scale.
        head_dim: channels of a head where the heads of the source are each read several times, one after
            the other, as grouped-query attention does: ``(kv d) -> (kv repeats d)``. Their copies share a scale.
    """

    source: str
    targets: tuple[str, ...]
    head_dim: int | None = None

    def channels(self, made: int, read: int) -> Tensor:
        """For each channel read the channel made that it shows, int64 ``[read]``.

        Raises: ValueError if the two widths do not belong together.
        """
        every = torch.arange(made)
        if made == read:
            return every
        head = self.head_dim
        if head is None or made % head or read % made:
            raise ValueError(
                f"{self.source} makes {made} channels, {', '.join(self.targets)} read {read}: give the head_dim of "
                "repeated heads, or drop this fold"
            )
        return repeat(every, "(kv d) -> (kv r d)", d=head, r=read // made)

    def modules(self, block: nn.Module) -> tuple[nn.Module, list[nn.Linear]]:
        """The modules behind the names. Raises: ValueError if one is missing or already quantized."""
        found: dict[str, nn.Module] = dict(block.named_modules())  # pyright: ignore[reportUnknownArgumentType]
        missing = [name for name in (self.source, *self.targets) if name not in found]
        if missing:
            raise ValueError(f"the block has no {', '.join(missing)}: declare folds by the names of its modules")
        targets = [found[name] for name in self.targets]
        for name, target in zip(self.targets, targets, strict=True):
            if not isinstance(target, nn.Linear):
                raise ValueError(f"{name} is a {type(target).__name__}: fold into torch.nn.Linear, before quantizing")
        return found[self.source], [target for target in targets if isinstance(target, nn.Linear)]


def width(source: nn.Module) -> int:
    """Channels that a norm or linear layer makes. Raises: ValueError if it has no weight for each of them."""
    weight = getattr(source, "weight", None)
    if not isinstance(weight, Tensor) or not (weight.ndim == 1 or isinstance(source, nn.Linear)):
        raise ValueError(
            f"a {type(source).__name__} has no weight for each channel: fold into an affine norm or a torch.nn.Linear"
        )
    return weight.shape[0]


@torch.no_grad()
def fold_(
    source: nn.Module,
    targets: Sequence[nn.Linear],
    scale: Tensor,
    channels: Tensor,
    *,
    stored: torch.dtype | None = None,
) -> Tensor:
    """Divide what ``source`` makes by ``scale`` and multiply the columns of its readers, in place.

    A norm in 16 bits cannot hold every quotient. What it was really divided by is therefore taken from its
    rounded weight, and it is that factor which the readers get: the norm's rounding changes nothing.

    Args:
        scale: float32 ``[made]``, positive.
        channels: int64 ``[read]`` of :meth:`Fold.channels`.
        stored: the type that the weight of a norm will be written in, where it is not the one it has now.

    Returns: the factor that each channel read was divided by, float32 ``[read]``.
    Raises: ValueError for a scale that is not positive and finite or that empties a channel of its type, and
    for a norm that does not multiply by its weight; nothing is changed then.
    """
    made = width(source)
    if tuple(scale.shape) != (made,) or not bool(((scale > 0) & torch.isfinite(scale)).all()):
        raise ValueError(f"a scale of shape {tuple(scale.shape)} does not fit: give {made} positive finite factors")
    real = divide_rows_(source, scale) if isinstance(source, nn.Linear) else divide_norm_(source, scale, stored)
    read = real[channels.to(real.device)]
    for target in targets:
        target.weight.copy_(target.weight.float() * read)
    return read


def divide_rows_(source: nn.Linear, scale: Tensor) -> Tensor:
    source.weight.copy_(source.weight.float() / scale[:, None])
    if source.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
        source.bias.copy_(source.bias.float() / scale)
    return scale


def divide_norm_(source: nn.Module, scale: Tensor, stored: torch.dtype | None) -> Tensor:
    weight: Tensor = source.weight  # pyright: ignore[reportAssignmentType]
    bias: Tensor | None = getattr(source, "bias", None)
    old_weight, old_bias = weight.clone(), None if bias is None else bias.clone()
    probe = rearrange(torch.arange(len(weight)).cos(), "k -> 1 k").to(weight)
    before = source(probe).float()
    weight.copy_((weight.float() / scale).to(stored or weight.dtype))
    emptied = (weight == 0) & (old_weight != 0)
    real = torch.where(weight == 0, scale, old_weight.float() / weight.float())
    if bias is not None:
        bias.copy_(bias.float() / real)
    strength = old_weight.float().abs() + (0 if old_bias is None else old_bias.float().abs())
    error = (source(probe).float() * real - before).abs()
    if bool(emptied.any()) or bool((error > 32 * torch.finfo(weight.dtype).eps * strength).any()):
        weight.copy_(old_weight)
        if bias is not None and old_bias is not None:
            bias.copy_(old_bias)
        raise ValueError(
            f"{type(source).__name__} does not divide by scales of {float(scale.min()):.3g} to "
            f"{float(scale.max()):.3g} in {weight.dtype}: fold into norms that multiply by their weight, with "
            "scales that it can hold"
        )
    return real
