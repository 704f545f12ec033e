"""How much attention the last token pays to each token in one layer of a Llama-like decoder."""

from typing import Any, cast

import torch
from einops import rearrange, repeat
from torch import Tensor, nn


def attention_of_last(
    layer: nn.Module, hidden: Tensor, rotation: tuple[Tensor, Tensor], last: Tensor, visible: Tensor
) -> Tensor:
    """``mean over heads of softmax_j(q_last . k_j / sqrt(d))``, from what enters a decoder layer.

    Only one query is computed, so that it works whatever kernel the layer's attention runs on.

    Args:
        layer: of a Llama or Qwen2 of ``transformers``.
        hidden: what enters it, ``[b, s, c]``.
        rotation: cosines and sines of the positions, each ``[b, s, d]``.
        last: index of the last token of each row, ``[b]``.
        visible: the tokens that are no padding, ``[b, s]``.

    Returns: ``[b, s]``, in float32; 0 for what the last token cannot see.
    """
    attention = cast(Any, layer).self_attn
    d = attention.head_dim
    x = cast(Any, layer).input_layernorm(hidden)
    rows = torch.arange(x.shape[0], device=x.device)
    q = rearrange(attention.q_proj(x[rows, last]), "b (h d) -> b h 1 d", d=d)
    k = rearrange(attention.k_proj(x), "b s (h d) -> b h s d", d=d)
    cosines, sines = rotation
    q = rotate(q, cosines[rows, last][:, None, None], sines[rows, last][:, None, None])
    k = rotate(k, cosines[:, None], sines[:, None])
    k = repeat(k, "b h s d -> b (h g) s d", g=q.shape[1] // k.shape[1])
    scores = (q @ k.mT)[:, :, 0].float() * attention.scaling
    sees = visible & (torch.arange(x.shape[1], device=x.device) <= last[:, None])
    return scores.masked_fill(~sees[:, None], -torch.inf).softmax(dim=-1).mean(dim=1)


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotary position embedding with the two halves of a head as real and imaginary parts."""
    first, second = x.chunk(2, dim=-1)
    return x * cosines + torch.cat([-second, first], dim=-1) * sines
