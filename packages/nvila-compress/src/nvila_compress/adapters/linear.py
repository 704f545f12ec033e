"""A compressor and the linear layer that reads what it makes.

Every vision-language model of the LLaVA kind has one linear layer that first reads the tokens of the vision
tower (after a fixed pixel shuffle or a norm, in some). After it, each token goes its own way. So a
compressor put directly in front of that layer changes how many tokens the language model sees, and nothing
else.

Folding also makes the tokens wider, and the layer must follow. Its new weight starts as n copies of the old
one, each divided by n: the output is then the old output for the mean of the n folded tokens. That is the
best guess before any training, and since each of the n tokens has its own columns now, training can tell them
apart. (At the bottom and right edge, where the grid was padded, zeros count in that mean.)
"""

import copy
from collections.abc import Iterator
from typing import Any, cast

import torch
from einops import repeat
from torch import Tensor, nn

from nvila_compress.adapters.blocks import as_rows, in_own_dtype, like_rows
from nvila_compress.contract import Compressor


class CompressedLinear(nn.Module):
    """Compress the tokens, then apply the widened linear layer.

    It takes the place of ``linear`` and keeps its name for the layer inside: with ``name="linear_1"`` in the place
    of ``projector.linear_1``, peft's ``target_modules=["linear_1"]`` finds ``projector.linear_1.linear_1``. The
    state dict still has the old layer under its old keys (``weight``, ``bias``), so that a folder saved with a
    compressor loads as the host that it was, and ``detach`` gives that layer back.

    Args:
        compressor: any ``Compressor`` that is an ``nn.Module``.
        linear: the layer that read the uncompressed tokens, or a peft LoRA layer around it; it is left as it is.
        grid: rows and columns of the tokens of one tile; if not given, each row of tokens must make a square.
            More tokens than the grid holds are class tokens in front of it, which pass.
        name: what the layer inside is called.

    Shapes: tokens ``[b, n, c]`` (or flat ``[b*n, c]``, or ``[b, h, w, c]``) -> ``[b, n', out_features]``
        (flat if they came flat), of the layer's dtype.
    Raises: GridError if the tokens do not lie on the grid; ValueError for a layer that cannot be widened.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        compressor: Compressor,
        linear: nn.Linear,
        *,
        grid: tuple[int, int] | None = None,
        name: str = "linear",
    ) -> None:
        super().__init__()
        self.grid = grid
        self.name = name
        self.original = (linear,)  # in a tuple: not a part of this module
        base = cast(nn.Linear, getattr(linear, "base_layer", linear))
        bias = cast(Tensor | None, base.bias)
        self.register_buffer("weight", base.weight.detach())
        self.register_buffer("bias", None if bias is None else bias.detach())
        self.compressor = cast(nn.Module, compressor)
        self.add_module(name, widen(linear, compressor.out_channels(linear.in_features)))

    @property
    def layer(self) -> nn.Linear:
        """The layer that reads the compressed tokens."""
        return cast(nn.Linear, self._modules[self.name])

    def forward(self, tokens: Tensor) -> Tensor:
        rows, lead, grid = as_rows(tokens, self.grid)
        folded = in_own_dtype(self.compressor, rows[:, lead:], grid)
        if lead:
            passed = repeat(rows[:, :lead], "b n c -> b n (f c)", f=folded.shape[2] // rows.shape[2])
            folded = torch.cat([passed, folded], dim=1)
        return self.layer(like_rows(folded, tokens))

    def restore(self) -> nn.Linear:
        """The layer whose place this is, with the values it had."""
        linear = self.original[0]
        base = cast(nn.Linear, getattr(linear, "base_layer", linear))
        base.weight.data = self.weight
        if self.bias is not None:
            base.bias.data = self.bias
        return linear

    def named_modules(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, memo: set[nn.Module] | None = None, prefix: str = "", remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Module]]:
        """The modules inside, not this one: whoever looks for layers by name (peft) shall find the one in it."""
        for name, module in self._modules.items():
            if module is not None:
                yield from module.named_modules(memo, f"{prefix}.{name}" if prefix else name, remove_duplicate)


def widen(linear: nn.Linear, in_features: int) -> nn.Linear:
    """A layer for ``n`` tokens laid side by side that starts as ``linear`` of their mean.

    ``weight' = repeat(weight, "o c -> o (n c)") / n``, the bias unchanged. A peft LoRA layer is copied, its base and
    its ``lora_A`` widened the same way.

    Args:
        linear: the layer for one token, ``[out, c]``.
        in_features: width of what it shall read, ``n * c``.

    Returns: a new layer of the same dtype, device and trainability.
    Raises: ValueError if ``in_features`` is no multiple of the layer's own.
    """
    if in_features % linear.in_features:
        raise ValueError(
            f"{in_features} input features are no multiple of {linear.in_features}: "
            "pass a layer made for the tokens that are folded"
        )
    n = in_features // linear.in_features
    if hasattr(linear, "lora_A"):
        return _widen_lora(linear, n)
    weight, bias = linear.weight, cast(Tensor | None, linear.bias)
    wide = nn.Linear(in_features, linear.out_features, bias=bias is not None, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        wide.weight.copy_(repeat(weight / n, "o c -> o (n c)", n=n))
        if bias is not None:
            wide.bias.copy_(bias)
    return wide.requires_grad_(weight.requires_grad)


def _widen_lora(layer: Any, n: int) -> Any:
    """``W + B A`` of a mean: ``A``, which reads the tokens, is widened like ``W``."""
    wide = copy.deepcopy(layer)
    wide.base_layer = widen(layer.base_layer, layer.base_layer.in_features * n)
    wide.in_features = wide.base_layer.in_features
    for name, reads in layer.lora_A.items():
        wide.lora_A[name] = widen(reads, reads.in_features * n)
    return wide
