"""Visual token compressors for any vision-language model."""

from nvila_compress.contract import Compressor, GridError
from nvila_compress.spatial import SpatialToChannel, channel_to_spatial
from nvila_compress.temporal import SpatioTemporalPool, TemporalAverage

__all__ = [
    "Compressor",
    "GridError",
    "SpatialToChannel",
    "SpatioTemporalPool",
    "TemporalAverage",
    "channel_to_spatial",
]
