"""What may stand for the blocks of a language model and the norm behind them."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from nvila_model.network.cache import Cache


class Stack(nn.Module, ABC):
    """Embeddings in, hidden states behind the last norm out, in float32; it only answers."""

    @abstractmethod
    def cache(self, batch: int, length: int) -> Cache:
        """A cache as this needs it."""

    @abstractmethod
    def forward(
        self,
        embeds: Tensor,
        *,
        positions: Tensor | None,
        mask: Tensor | None,
        cache: Cache | None,
        wanted: Tensor | None,
    ) -> Tensor:
        """As ``Qwen2``."""


def plain(tensor: Tensor) -> bool:
    """Whether a tensor has memory that graphs may read: not a fake one, and not while something is compiled."""
    return not torch.compiler.is_compiling() and type(tensor) is Tensor
