"""Put a compressor behind the vision tower of a model from another library.

``attach`` does it for ``transformers`` models, with the image-token count of the processor following.
Nothing here imports ``transformers``: the models and processors that come in are enough.
"""

from nvila_compress.adapters.linear import CompressedLinear, widen
from nvila_compress.adapters.transformers import Attached, attach, supported_models

__all__ = ["Attached", "CompressedLinear", "attach", "supported_models", "widen"]
