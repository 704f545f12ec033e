"""How much attention a token receives: what VisionZip and PruMerge rank by, from a tower's attention weights."""

from torch import Tensor


def attention_received(weights: Tensor, *, class_token: bool) -> Tensor:
    """The attention that each patch token receives, the mean over heads.

    With a class token, ``mean_h A[h, 0, j]``: what it attends to. Without one (SigLIP), ``mean_h,i A[h, i, j]``: what
    all queries attend to.

    Args:
        weights: attention after its softmax, of one layer of the tower; the last but one in LLaVA.
        class_token: whether the first token is one; it is not among those that come out.

    Shapes: ``[b, heads, n, n]`` -> ``[b, n]``, or ``[b, heads, 1 + n, 1 + n]`` -> ``[b, n]``.
    Raises: ValueError for weights of other axes.
    Source: VisionZip (arXiv 2412.04467), section 3.2 and, for towers without class token, its appendix.
    """
    if weights.ndim != 4 or weights.shape[2] != weights.shape[3]:
        raise ValueError(f"attention of shape {list(weights.shape)}: pass [b, heads, tokens, tokens] of one layer")
    return weights[:, :, 0, 1:].mean(dim=1) if class_token else weights.mean(dim=(1, 2))
