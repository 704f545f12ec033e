"""Token merging (ToMe): average the tokens that are most alike, pair by pair.

Every other token looks for its likeness among those between; the most alike pairs become one. One round is a single
product and a sort and can at most halve the tokens; for fewer there are more rounds. A token that stands for many
counts as many in the next mean.

Here the tokens that came out of a tower are merged. ``patch_tower`` does it inside the tower, where it saves work.
"""

import torch
from torch import Tensor

from nvila_compress.choose.similarity import cosines
from nvila_compress.contract import highest
from nvila_compress.merge.pairs import Merge, mean_of_groups


class ToMe(Merge):
    """Merge the most similar tokens by bipartite soft matching, round by round.

    A round: the tokens in reading order alternate between ``A`` and ``B``; each of ``A`` draws an edge to the one of
    ``B`` with the highest cosine; the ``r`` best edges are merged into their ends in ``B`` by mean, weighted by the
    number of tokens that each stands for. ``r`` is what is left to remove, at most ``|A|``. What stands for a group
    keeps its place in reading order.

    Args:
        keep: a number of tokens or a share of them.

    Shapes: tokens ``[b, n, c]`` -> ``[b, count, c]``. Cost: ``n^2 c / 4`` multiplications in the first round.
    Raises: as ``Choose``.
    Source: Bolya et al., Token Merging (arXiv 2210.09461), section 3; there the likeness is that of the keys, here of
        the tokens.
    """

    def pair(self, tokens: Tensor, count: int, grid: tuple[int, int], **context: Tensor) -> Tensor:
        b, n, _ = tokens.shape
        places = torch.arange(n, device=tokens.device).expand(b, -1)
        slots, sizes = places, tokens.new_ones(b, n)
        while n > count:
            kept, to = match(cosines(tokens[:, 0::2], tokens[:, 1::2]), min(n - count, n // 2))
            tokens = mean_of_groups(tokens, sizes, to, kept.shape[1])
            sizes = sizes.new_zeros(kept.shape).scatter_add(1, to, sizes)
            places, slots, n = places.gather(1, kept), to.gather(1, slots), kept.shape[1]
        return places.gather(1, slots)


def match(likeness: Tensor, r: int) -> tuple[Tensor, Tensor]:
    """One round of bipartite soft matching over ``n`` tokens: those at even places are ``A``, at odd places ``B``.

    Args:
        likeness: of each of ``A`` with each of ``B``, ``[b, ceil(n/2), floor(n/2)]``.
        r: pairs to merge, at most ``floor(n/2)``.

    Returns: the places that stay, ``[b, n - r]``, rising; and for each of the ``n`` tokens the index among them of the
        one it is now part of, ``[b, n]``.
    """
    b, a, other = likeness.shape
    n = a + other
    best, end = likeness.max(dim=2)
    merged = highest(best, r)
    owner = torch.arange(n, device=likeness.device).expand(b, -1)
    owner = owner.scatter(1, 2 * merged, 2 * end.gather(1, merged) + 1)
    stays = likeness.new_ones(b, n).scatter(1, 2 * merged, 0.0)
    kept = highest(stays, n - r)
    index = (stays.cumsum(dim=1) - 1).long().gather(1, owner)
    return kept, index
