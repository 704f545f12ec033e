"""The network in plain torch: its parts, put together as ``VLM``."""

from typing import TYPE_CHECKING

from nvila_model.lazy import lazy_names

if TYPE_CHECKING:
    from nvila_model.network.cache import Cache, KVCache
    from nvila_model.network.framing import Framing
    from nvila_model.network.fusion import Fused, fuse, padded
    from nvila_model.network.loss import LOSS_CHUNK, chunk_losses, token_losses
    from nvila_model.network.masks import causal_mask, padding_mask, segment_mask
    from nvila_model.network.meta import meta_device
    from nvila_model.network.projector import Projector, build_projector
    from nvila_model.network.qwen2 import Block, GatedMLP, Qwen2, RMSNorm, rotary_angles
    from nvila_model.network.vision import VisionTower
    from nvila_model.network.vlm import VISION_BATCH, VLM, Output, Tower
    from nvila_model.network.vocabulary import ScreenedHead, StoredEmbedding, StoredHead

__all__ = [
    "LOSS_CHUNK",
    "VISION_BATCH",
    "VLM",
    "Block",
    "Cache",
    "Framing",
    "Fused",
    "GatedMLP",
    "KVCache",
    "Output",
    "Projector",
    "Qwen2",
    "RMSNorm",
    "ScreenedHead",
    "StoredEmbedding",
    "StoredHead",
    "Tower",
    "VisionTower",
    "build_projector",
    "causal_mask",
    "chunk_losses",
    "fuse",
    "meta_device",
    "padded",
    "padding_mask",
    "rotary_angles",
    "segment_mask",
    "token_losses",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "cache": "Cache KVCache",
        "framing": "Framing",
        "fusion": "Fused fuse padded",
        "loss": "LOSS_CHUNK chunk_losses token_losses",
        "masks": "causal_mask padding_mask segment_mask",
        "meta": "meta_device",
        "projector": "Projector build_projector",
        "qwen2": "Block GatedMLP Qwen2 RMSNorm rotary_angles",
        "vision": "VisionTower",
        "vlm": "VISION_BATCH Output Tower VLM",
        "vocabulary": "ScreenedHead StoredEmbedding StoredHead",
    },
)
