"""DivPrune: the tokens that stand farthest apart.

Attention says which tokens the tower looked at, often many copies of one thing. DivPrune does not ask what matters:
it keeps a set in which no token is near another, so that every part of what the image holds has someone to speak for
it. It needs nothing but the tokens and no training.

The set of ``k`` tokens whose smallest mutual distance is largest cannot be found fast; the greedy one, which always
adds the token farthest from all kept so far, has at least half that distance.
"""

import torch
from torch import Tensor

from nvila_compress.choose.similarity import cosines
from nvila_compress.contract import Choose


class DivPrune(Choose):
    """Keep tokens that are far from each other, by a greedy max-min choice.

    ``d(i, j) = 1 - cos(x_i, x_j)``. First ``argmax_i min_{j != i} d(i, j)``, then, until ``count`` are kept,
    ``argmax_{i not in S} min_{j in S} d(i, j)``.

    Args:
        keep: a number of tokens or a share of them.

    Shapes: tokens ``[b, n, c]`` -> ``[b, count, c]``. Cost: ``n^2 c`` multiplications, then ``count`` steps over ``n``.
    Raises: as ``Choose``.
    Source: Alvar et al., DivPrune (arXiv 2503.02175), algorithm 1.
    """

    def pick(self, tokens: Tensor, count: int, grid: tuple[int, int], **context: Tensor) -> Tensor:
        distance = 1 - cosines(tokens, tokens)
        rows = torch.arange(tokens.shape[0], device=tokens.device)
        own = torch.eye(tokens.shape[1], dtype=torch.bool, device=tokens.device)
        chosen = distance.masked_fill(own, torch.inf).amin(dim=2).argmax(dim=1)
        picked = [chosen]
        nearest = distance[rows, chosen].scatter(1, chosen[:, None], -torch.inf)
        for _ in range(count - 1):
            chosen = nearest.argmax(dim=1)
            picked.append(chosen)
            nearest = torch.minimum(nearest, distance[rows, chosen]).scatter(1, chosen[:, None], -torch.inf)
        return torch.stack(picked, dim=1)
