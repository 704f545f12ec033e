"""Cluster pruning, the paper's baseline: pictures in groups of like looks, by k-means on vision features.

The feature of a sample is the mean over the patches of its pictures, each seen as one tile, and over its pictures and
frames. Samples without any make a group of their own. The paper names k-means on SigLIP features and an even draw from
the clusters; how many clusters it does not say.
"""

from collections.abc import Iterable

import numpy as np
import torch
from nvila_model import NVILA, Image, MediaError, Video
from nvila_model.inputs import Conversation, read_conversation
from nvila_tiling import DynamicS2, DynamicTiles, SingleTile, Tiler

from nvila_train.delta_loss.choices import DeltaLossError

CLUSTERS = 100
NOTHING_SEEN = -1
"""The cluster of samples without a picture."""


def cluster(conversations: Iterable[Conversation], model: NVILA, *, count: int = CLUSTERS, seed: int = 0) -> np.ndarray:
    """The cluster of each conversation, int64 ``[n]``.

    Args:
        model: whose vision tower looks.
        count: clusters at most; there are never more than samples with pictures.
        seed: of the first centres and of the small batches.

    Raises: DeltaLossError for a picture that cannot be read, or without the extra ``prune``.
    """
    return assign([feature(model, number, each) for number, each in enumerate(conversations)], count=count, seed=seed)


@torch.no_grad()
def feature(model: NVILA, number: int, conversation: Conversation) -> np.ndarray | None:
    """The mean feature of what row ``number`` shows, float32 ``[c]``; None if it shows nothing.

    Raises: DeltaLossError for a picture that cannot be read.
    """
    tiler = whole(model.needed_processor().tiler)
    frames = model.needed_processor().video.num_frames
    tiles: list[torch.Tensor] = []
    try:
        for turn in read_conversation(conversation):
            for part in turn.parts:
                if isinstance(part, Image):
                    tiles.append(tiler(part.load()).tiles)
                elif isinstance(part, Video):
                    seen = part.load(num_frames=frames).frames
                    tiles.append(torch.cat([tiler(frame).tiles for frame in seen]))
    except MediaError as error:
        raise DeltaLossError(f"row {number}: {error}") from None
    if not tiles:
        return None
    # Each picture and each clip counts once, however many frames it has.
    means = [model.features(each).float().mean((0, 1)) for each in tiles]
    return torch.stack(means).mean(0).cpu().numpy()


def whole(tiler: Tiler) -> Tiler:
    """A tiler that shows a picture as one tile."""
    match tiler:
        case DynamicS2():
            return tiler.single()
        case DynamicTiles():
            return SingleTile(tile=tiler.tile, resampler=tiler.resampler, exif=tiler.exif)
        case _:
            return tiler


def assign(features: Iterable[np.ndarray | None], *, count: int, seed: int) -> np.ndarray:
    """The cluster of each feature, int64 ``[n]``, ``NOTHING_SEEN`` where there is none. Raises: DeltaLossError."""
    try:
        from sklearn.cluster import MiniBatchKMeans
    except ImportError:
        raise DeltaLossError("clusters are found by scikit-learn: pip install 'nvila-train[prune]'") from None
    if count < 1:
        raise DeltaLossError(f"{count} clusters hold nothing: use at least 1")
    features = list(features)
    seen = [place for place, found in enumerate(features) if found is not None]
    clusters = np.full(len(features), NOTHING_SEEN, dtype=np.int64)
    if seen:
        matrix = np.stack([found for found in features if found is not None])
        distinct = len(np.unique(matrix, axis=0))
        means = MiniBatchKMeans(n_clusters=min(count, distinct), random_state=seed)
        clusters[seen] = means.fit_predict(matrix)
    return clusters
