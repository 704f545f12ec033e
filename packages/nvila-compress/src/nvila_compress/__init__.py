"""Visual token compressors for any vision-language model."""

from nvila_compress.contract import Compressor, GridError
from nvila_compress.perceiver import PerceiverResampler
from nvila_compress.registry import build, list_compressors
from nvila_compress.spatial import SpatialToChannel, channel_to_spatial
from nvila_compress.temporal import SpatioTemporalPool, TemporalAverage
from nvila_compress.token_learner import TokenLearner

__all__ = [
    "Compressor",
    "GridError",
    "PerceiverResampler",
    "SpatialToChannel",
    "SpatioTemporalPool",
    "TemporalAverage",
    "TokenLearner",
    "build",
    "channel_to_spatial",
    "list_compressors",
]
