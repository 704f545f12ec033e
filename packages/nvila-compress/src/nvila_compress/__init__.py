"""Visual token compressors for any vision-language model."""

from nvila_compress.choose.attention import attention_received
from nvila_compress.choose.baselines import RandomChoice, UniformChoice
from nvila_compress.choose.cdpruner import CDPruner
from nvila_compress.choose.dart import DART
from nvila_compress.choose.divprune import DivPrune
from nvila_compress.choose.prumerge import PruMerge
from nvila_compress.choose.visionzip import VisionZip
from nvila_compress.contract import Choose, Compressor, Fold, GridError
from nvila_compress.fold.c_abstractor import CAbstractor
from nvila_compress.fold.nested import NestedPool
from nvila_compress.fold.perceiver import PerceiverResampler
from nvila_compress.fold.pixel_shuffle import PixelShuffle
from nvila_compress.fold.pool import AdaptivePool, AveragePool
from nvila_compress.fold.spatial_to_channel import SpatialToChannel, channel_to_spatial
from nvila_compress.fold.token_learner import TokenLearner
from nvila_compress.fold.token_packer import TokenPacker
from nvila_compress.merge.pairs import Merge
from nvila_compress.merge.tome import ToMe
from nvila_compress.merge.tower import merged_count, patch_tower, unpatch_tower
from nvila_compress.registry import build, describe, from_description, list_compressors, register
from nvila_compress.video.evs import EVS
from nvila_compress.video.fastvid import FastVID
from nvila_compress.video.spatio_temporal import SpatioTemporalPool
from nvila_compress.video.temporal_average import TemporalAverage
from nvila_compress.video.vidcom2 import VidCom2

__all__ = [
    "DART",
    "EVS",
    "AdaptivePool",
    "AveragePool",
    "CAbstractor",
    "CDPruner",
    "Choose",
    "Compressor",
    "DivPrune",
    "FastVID",
    "Fold",
    "GridError",
    "Merge",
    "NestedPool",
    "PerceiverResampler",
    "PixelShuffle",
    "PruMerge",
    "RandomChoice",
    "SpatialToChannel",
    "SpatioTemporalPool",
    "TemporalAverage",
    "ToMe",
    "TokenLearner",
    "TokenPacker",
    "UniformChoice",
    "VidCom2",
    "VisionZip",
    "attention_received",
    "build",
    "channel_to_spatial",
    "describe",
    "from_description",
    "list_compressors",
    "merged_count",
    "patch_tower",
    "register",
    "unpatch_tower",
]
