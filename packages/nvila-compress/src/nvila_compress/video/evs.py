"""Efficient video sampling (EVS): a patch that did not change since the frame before is not said again.

Most of a video stands still. Each token is compared with the one at the same place in the frame before; those that
changed most go on, wherever in the video they are, and the first frame, which nothing came before, goes first.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from nvila_compress.contract import Choose


class EVS(Choose):
    """Keep the tokens that differ most from the frame before.

    ``s(t, i) = 1 - cos(x(t, i), x(t - 1, i))``, and infinite in the first frame. The highest of the whole video go on;
    frames keep different numbers of tokens.

    Args:
        keep: of all tokens of the video, a number or a share.

    Shapes: the frames of one video ``[t, n, c]`` -> ``[1, count, c]``. Cost: ``t n c`` multiplications.
    Raises: as ``Choose``; GridError for no frame.
    Source: Bagrov et al., Efficient Video Sampling (arXiv 2510.14624), section 3, with a budget in the place of its
        threshold.
    """

    needs = frozenset({"previous_frame"})

    def score(self, tokens: Tensor, grid: tuple[int, int], **context: Tensor) -> Tensor:
        changed = 1 - F.cosine_similarity(tokens[1:], tokens[:-1], dim=2)
        return torch.cat([torch.full_like(tokens[:1, :, 0], torch.inf), changed])
