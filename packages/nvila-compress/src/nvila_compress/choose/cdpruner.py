"""CDPruner: tokens that differ from each other and matter to the question.

A determinantal point process gives a set the probability ``det(L_S)``: the squared volume that its vectors span, large
when they are long and stand apart. CDPruner makes a token as long as it is relevant to the prompt. The greedy choice
adds what enlarges the volume most; with a Cholesky row for each token kept, a step costs one product (Chen et al.).
"""

import torch
from torch import Tensor

from nvila_compress.choose.similarity import cosines
from nvila_compress.contract import Choose

EXHAUSTED = 1e-6
"""Below this a token adds no volume that float32 can tell from rounding."""


class CDPruner(Choose):
    """Keep the greedy maximum of ``det(diag(r) S diag(r))`` over sets of ``count`` tokens.

    ``S_ij = cos(x_i, x_j)``, ``r_i`` the mean over the prompt's tokens of ``cos(x_i, p_t)``, scaled to ``[0, 1]`` in
    each image. Once the kept tokens span all there is (never more than ``c`` of them do), the most relevant follow.

    Args:
        keep: a number of tokens or a share of them.

    Shapes: tokens ``[b, n, c]``, ``prompt=[b, t, c]`` -> ``[b, count, c]``. Cost: ``n^2 c``, then ``n count^2 / 2``.
    Raises: as ``Choose``; ValueError for a prompt of another width.
    Source: Zhang et al., CDPruner (arXiv 2506.10967), section 3; Chen et al., "Fast Greedy MAP Inference for
        Determinantal Point Process" (arXiv 1709.05135), algorithm 1.
    """

    needs = frozenset({"prompt"})

    def pick(self, tokens: Tensor, count: int, grid: tuple[int, int], **context: Tensor) -> Tensor:
        relevance = relevance_to(context["prompt"], tokens)
        kernel = relevance[:, :, None] * cosines(tokens, tokens) * relevance[:, None, :]
        rows = torch.arange(tokens.shape[0], device=tokens.device)
        gain = kernel.diagonal(dim1=1, dim2=2)
        spare = EXHAUSTED * (relevance - 1)  # at most 0: what is left when no gain is
        picked: list[Tensor] = []
        cholesky = kernel.new_zeros(*kernel.shape[:2], 0)
        for _ in range(count):
            chosen = torch.where(gain > EXHAUSTED, gain, spare)
            if picked:
                chosen = chosen.scatter(1, torch.stack(picked, dim=1), -torch.inf)
            chosen = chosen.argmax(dim=1)
            picked.append(chosen)
            pivot = gain[rows, chosen].clamp_min(EXHAUSTED).sqrt()[:, None]
            projected = (cholesky @ cholesky[rows, chosen, :, None])[:, :, 0]
            row = (kernel[rows, chosen] - projected) / pivot
            gain = gain - row.square()
            cholesky = torch.cat([cholesky, row[:, :, None]], dim=2)
        return torch.stack(picked, dim=1)


def relevance_to(prompt: Tensor, tokens: Tensor) -> Tensor:
    """Mean cosine with the prompt's tokens, scaled to ``[0, 1]`` in each image: ``[b, n]``."""
    if prompt.shape[-1] != tokens.shape[2]:
        raise ValueError(
            f"prompt {prompt.shape[-1]} wide for tokens {tokens.shape[2]} wide: "
            "pass embeddings of the space that the tokens are in"
        )
    relevance = cosines(tokens, prompt).mean(dim=2)
    low, high = relevance.amin(dim=1, keepdim=True), relevance.amax(dim=1, keepdim=True)
    return torch.where(high > low, (relevance - low) / (high - low).clamp_min(1e-12), torch.ones_like(relevance))
