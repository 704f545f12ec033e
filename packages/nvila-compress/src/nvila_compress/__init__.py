"""Visual token compressors for any vision-language model."""

from nvila_compress.choose.baselines import RandomChoice, UniformChoice
from nvila_compress.contract import Choose, Compressor, Fold, GridError
from nvila_compress.fold.perceiver import PerceiverResampler
from nvila_compress.fold.spatial_to_channel import SpatialToChannel, channel_to_spatial
from nvila_compress.fold.token_learner import TokenLearner
from nvila_compress.registry import build, describe, from_description, list_compressors, register
from nvila_compress.video.spatio_temporal import SpatioTemporalPool
from nvila_compress.video.temporal_average import TemporalAverage

__all__ = [
    "Choose",
    "Compressor",
    "Fold",
    "GridError",
    "PerceiverResampler",
    "RandomChoice",
    "SpatialToChannel",
    "SpatioTemporalPool",
    "TemporalAverage",
    "TokenLearner",
    "UniformChoice",
    "build",
    "channel_to_spatial",
    "describe",
    "from_description",
    "list_compressors",
    "register",
]
