"""FastVID: cut the video into segments, and in each keep what is attended to and what is dense.

Frames of one scene repeat each other, frames of two scenes do not: tokens may be merged within a segment, never
across. Part of the budget goes to the most attended tokens of every frame (detail). The rest goes to a few anchor
frames of each segment, to tokens in whose neighbourhood many others lie (density peaks); whatever is left in the
segment is merged into the anchor that it resembles most.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from nvila_compress.choose.similarity import cosines
from nvila_compress.merge.pairs import Merge
from nvila_compress.video.apportion import apportion, mask_of

UNWANTED = 1e-6
"""Weight of the frames that are no anchors: they are drawn from when all anchor frames are full."""


class FastVID(Merge):
    """Segments of alike frames; attended tokens of each frame, and density peaks that take in the rest.

    Segments: with ``s_t`` the cosine of the mean tokens of frames ``t`` and ``t + 1``, a cut at each of the
    ``segments - 1`` lowest and wherever ``s_t < threshold``. Salient: ``1 - density`` of the budget, in equal parts
    the most attended tokens of each frame. Anchors: the rest of the budget, to each segment by its length, to every
    ``stride``-th frame of it, the tokens with the highest ``rho_i delta_i``:
    ``rho_i = exp(-mean of the squared distances to the ``neighbors`` nearest)``, ``delta_i`` the distance to the
    nearest of higher ``rho``. An anchor becomes ``beta x + (1 - beta) mean`` of those that join it.

    Args:
        keep: of all tokens of the video, a number or a share.
        segments, threshold: at least so many segments, and a cut below this cosine.
        density: share of the budget that goes to anchors.
        stride: one anchor frame in so many.
        neighbors: for the density of a token within its frame.
        beta: what an anchor keeps of itself.

    Shapes: the frames of one video ``[t, n, c]``, ``attention=[t, n]`` (``attention_received``) -> ``[1, count, c]``.
        Cost: ``t n^2 c`` for densities and at most ``t n count c`` to join.
    Raises: as ``Choose``; GridError for no frame; ValueError for numbers out of their range.
    Source: Shen et al., FastVID (arXiv 2503.11187), section 3. Distances are between tokens scaled to length 1.
    """

    needs = frozenset({"previous_frame", "attention"})

    def __init__(
        self,
        keep: int | float = 0.25,
        *,
        segments: int = 8,
        threshold: float = 0.9,
        density: float = 0.4,
        stride: int = 4,
        neighbors: int = 4,
        beta: float = 0.6,
    ) -> None:
        super().__init__(keep)
        if min(segments, stride, neighbors) < 1 or not 0 <= density <= 1 or not 0 < beta <= 1:
            raise ValueError(
                f"segments {segments}, stride {stride}, neighbors {neighbors} must be at least 1, density {density} in "
                f"[0, 1] and beta {beta} in (0, 1]"
            )
        self.segments, self.threshold, self.density = segments, threshold, density
        self.stride, self.neighbors, self.beta = stride, neighbors, beta

    def pair(self, tokens: Tensor, count: int, grid: tuple[int, int], **context: Tensor) -> Tensor:
        (t, n, _), device = tokens.shape, tokens.device
        segment = segment_of(tokens.mean(dim=1), self.segments, self.threshold)
        anchors = int(self.density * count + 0.5)
        attention = context["attention"]
        salient = mask_of(apportion(attention, attention.new_ones(t), count - anchors), attention)
        own = torch.arange(t * n, device=device)
        owners = torch.where(salient.flatten(), own, -1)
        if anchors == 0:
            return owners[None]
        unit = F.normalize(tokens, dim=2)
        peaks = density_peaks(unit, self.neighbors).masked_fill(salient, -torch.inf)
        anchor = apportion(peaks, anchor_weights(segment, self.stride), anchors, free=(~salient).sum(dim=1))
        likeness = cosines(unit.flatten(0, 1), unit.flatten(0, 1)[anchor])
        per_token = segment.repeat_interleave(n)
        apart = per_token[:, None] != per_token[anchor][None]
        best, nearest = likeness.masked_fill(apart, -torch.inf).max(dim=1)
        joined = torch.where(best.isneginf(), -1, anchor[nearest])
        owners = torch.where(salient.flatten(), own, joined).scatter(0, anchor, anchor)
        return owners[None]

    def weigh(self, tokens: Tensor, owners: Tensor, **context: Tensor) -> Tensor:
        own = owners == torch.arange(owners.shape[1], device=owners.device)
        joined = torch.zeros_like(owners).scatter_add(1, owners.clamp_min(0), (~own & (owners >= 0)).long())
        others = joined.gather(1, owners.clamp_min(0)).to(tokens.dtype)
        weights = torch.where(own, self.beta, (1 - self.beta) / others.clamp_min(1))
        return torch.where(others > 0, weights, 1.0)


def segment_of(frames: Tensor, segments: int, threshold: float) -> Tensor:
    """The number of each frame's segment, rising from 0: mean tokens ``[t, c]`` -> ``[t]``."""
    likeness = F.cosine_similarity(frames[1:], frames[:-1], dim=1)
    lowest = likeness.argsort(stable=True)[: segments - 1]
    cut = (likeness < threshold).long().scatter(0, lowest, 1)
    return F.pad(cut.cumsum(0), (1, 0))


def density_peaks(unit: Tensor, neighbors: int) -> Tensor:
    """``rho_i delta_i`` of each token within its frame (DPC-KNN): ``[t, n, c]`` -> ``[t, n]``."""
    n = unit.shape[1]
    squared = (2 - 2 * unit @ unit.mT).clamp_min(0)
    itself = torch.eye(n, dtype=torch.bool, device=unit.device)
    squared = squared.masked_fill(itself, 0)
    nearest = squared.masked_fill(itself, torch.inf).topk(max(1, min(neighbors, n - 1)), dim=2, largest=False).values
    rho = (-nearest.clamp_max(4).mean(dim=2)).exp()
    higher = rho[:, None, :] > rho[:, :, None]
    distance = squared.sqrt()
    delta = distance.masked_fill(~higher, torch.inf).amin(dim=2)
    return rho * torch.where(delta.isinf(), distance.amax(dim=2), delta)


def anchor_weights(segment: Tensor, stride: int) -> Tensor:
    """The part of each frame: its segment's length over the segment's anchor frames; next to none for the others."""
    t = segment.shape[0]
    same = segment[:, None] == segment[None]
    index = torch.arange(t, device=segment.device) - same.long().argmax(dim=1)
    is_anchor = index % stride == 0
    weights = same.sum(dim=1) / (same & is_anchor[None]).sum(dim=1)
    return torch.where(is_anchor, weights, UNWANTED)
