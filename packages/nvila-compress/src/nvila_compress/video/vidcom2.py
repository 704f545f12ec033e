"""VidCom2: frames unlike the rest of the video get more of the budget, and in each the tokens unlike the rest.

A uniform budget spends as much on the tenth copy of a scene as on the one frame where something happens. VidCom2
measures how far each frame is from the mean of the video, divides the budget by that, and fills a frame's part with
the tokens that are farthest from the means of the video and of the frame.
"""

import torch.nn.functional as F
from torch import Tensor

from nvila_compress.contract import Choose
from nvila_compress.video.apportion import apportion


class VidCom2(Choose):
    """Keep the most unusual tokens, more of them in unusual frames.

    With ``v`` the mean token of the video and ``f_t`` that of a frame: ``u(t, i) = -cos(x(t, i), v)``;
    the frame's weight is ``1 + softmax_t(mean_i u(t, i) / temperature) - 1/T``, its part of the budget the weight's
    part of their sum ``T``; within it the tokens with the highest ``u(t, i) - cos(x(t, i), f_t)`` go on.

    Args:
        keep: of all tokens of the video, a number or a share.
        temperature: of the softmax over frames; 0.01 in the paper. Higher is more uniform.

    Shapes: the frames of one video ``[t, n, c]`` -> ``[1, count, c]``. Cost: ``2 t n c`` multiplications.
    Raises: as ``Choose``; GridError for no frame; ValueError for a temperature of 0 or less.
    Source: Liu et al., Video Compression Commander (arXiv 2505.14454), section 4; the parts are rounded so that they
        add up to the budget (``apportion``).
    """

    needs = frozenset({"previous_frame"})

    def __init__(self, keep: int | float = 0.25, *, temperature: float = 0.01) -> None:
        super().__init__(keep)
        if temperature <= 0:
            raise ValueError(f"temperature {temperature} <= 0: 0.01 is the paper's, higher is more uniform")
        self.temperature = temperature

    def pick(self, tokens: Tensor, count: int, grid: tuple[int, int], **context: Tensor) -> Tensor:
        unique = -F.cosine_similarity(tokens, tokens.mean(dim=(0, 1), keepdim=True), dim=2)
        weights = 1 + (unique.mean(dim=1) / self.temperature).softmax(dim=0) - 1 / tokens.shape[0]
        scores = unique - F.cosine_similarity(tokens, tokens.mean(dim=1, keepdim=True), dim=2)
        return apportion(scores, weights, count)[None]
