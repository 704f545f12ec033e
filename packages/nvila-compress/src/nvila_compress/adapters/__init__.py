"""Put a compressor after the vision tower of a model from another library.

``attach`` does it for ``transformers`` models, with the image-token count of the processor following;
``load_compressed`` loads what such a model's ``save_pretrained`` wrote. Nothing is imported of ``transformers``
before a model is loaded: the models and processors that come in are enough.
"""

from nvila_compress.adapters import hosts as _hosts
from nvila_compress.adapters.after_projector import Override, TileHook, TokenCompression
from nvila_compress.adapters.attach import Attached, attach, detach, load_compressed
from nvila_compress.adapters.blocks import Block, out_length
from nvila_compress.adapters.family import Family, Placing, register_family, supported_models
from nvila_compress.adapters.linear import CompressedLinear, widen
from nvila_compress.adapters.tiles import CountAttribute, FixedTiles
from nvila_compress.merge.tower import patch_tower

_hosts.register()

__all__ = [
    "Attached",
    "Block",
    "CompressedLinear",
    "CountAttribute",
    "Family",
    "FixedTiles",
    "Override",
    "Placing",
    "TileHook",
    "TokenCompression",
    "attach",
    "detach",
    "load_compressed",
    "out_length",
    "patch_tower",
    "register_family",
    "supported_models",
    "widen",
]
